import { constants } from "node:fs";
import { access, readFile } from "node:fs/promises";

/** What runs the guest's code. */
export type Accelerator = "kvm" | "tcg";

/**
 * KVM where this machine has it: /dev/kvm may be used, and the processor virtualises. Where the device is there without
 * that (a module that emulates it), guests get stuck.
 */
export async function bestAccelerator(device = "/dev/kvm", cpuInfo = "/proc/cpuinfo"): Promise<Accelerator> {
  try {
    await access(device, constants.R_OK | constants.W_OK);
    return /^flags\s*:.*\b(?:vmx|svm)\b/m.test(await readFile(cpuInfo, "utf8")) ? "kvm" : "tcg";
  } catch {
    return "tcg";
  }
}
