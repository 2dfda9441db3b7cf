import { compareGenerations } from "../../repository/generations.ts";
import type { Manifest } from "../../repository/manifest.ts";
import type { Loss } from "./losses.ts";

/** What can be done about losses, a sentence for each source. @param checked the generations that were looked at. */
export function adviceOn(losses: readonly Loss[], checked: readonly Manifest[]): string[] {
  return [...new Set(losses.map(({ source }) => source))].sort().map((source) => {
    const newest = checked
      .filter((manifest) => manifest.source === source)
      .sort(compareGenerations)
      .at(-1);
    const ofNewest = losses.filter(({ generation }) => generation === newest?.generation);
    if (ofNewest.some(({ ofLayers }) => ofLayers)) {
      return `${source}: the map of its newest generation is lost: run the next backup with --full, which stands on none of this`;
    }
    if (ofNewest.length > 0) {
      return (
        `${source}: the next backup stores anew what its disks hold in these places, so that it is whole; ` +
        "generations so far keep their holes"
      );
    }
    return `${source}: its newest generation is whole; those above keep their holes until they are forgotten`;
  });
}
