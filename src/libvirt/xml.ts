import { DOMParser, onErrorStopParsing, type Element } from "@xmldom/xmldom";
import { AppError, messageOf } from "../errors.ts";

export type { Element } from "@xmldom/xmldom";

const ELEMENT_NODE = 1;

/**
 * Reads what libvirt says. @param root the name of its outermost element.
 * @throws AppError E_LIBVIRT_XML (source).
 */
export function parseXml(text: string, root: string): Element {
  try {
    const parser = new DOMParser({ onError: onErrorStopParsing });
    const { documentElement } = parser.parseFromString(text, "text/xml");
    if (documentElement?.localName === root) return documentElement;
    throw new Error(`it begins with ${documentElement?.localName ?? "nothing"}`);
  } catch (error) {
    const message = `Cannot read what libvirt says of a ${root}: ${messageOf(error)}`;
    throw new AppError("source", "E_LIBVIRT_XML", message, {}, error);
  }
}

/** Its children of this name, in their order. */
export function childrenOf(parent: Element | undefined, name: string): Element[] {
  return [...(parent?.childNodes ?? [])].filter(
    (node): node is Element => node.nodeType === ELEMENT_NODE && (node as Element).localName === name,
  );
}

/** The first of its children of this name; along the path, when there are several names. */
export function childOf(parent: Element | undefined, ...path: readonly string[]): Element | undefined {
  return path.reduce<Element | undefined>((from, name) => childrenOf(from, name)[0], parent);
}

/** Undefined for an attribute that is not there. */
export function attributeOf(element: Element | undefined, name: string): string | undefined {
  return element?.getAttribute(name) ?? undefined;
}

export function textOf(element: Element | undefined): string {
  return element?.textContent?.trim() ?? "";
}

/** An element to be written. Attributes that are undefined are left out. */
export interface Written {
  readonly name: string;
  readonly attributes?: Readonly<Record<string, string | undefined>>;
  readonly children?: readonly (Written | string)[];
}

/** As text, escaped. */
export function writeXml({ name, attributes = {}, children = [] }: Written): string {
  const given = Object.entries(attributes).flatMap(([key, value]) =>
    value === undefined ? [] : [` ${key}="${escapeXml(value)}"`],
  );
  const inner = children.map((child) => (typeof child === "string" ? escapeXml(child) : writeXml(child)));
  return `<${name}${given.join("")}>${inner.join("")}</${name}>`;
}

function escapeXml(text: string): string {
  return text.replace(/[&<>"'\n\r\t]/g, (found) => `&#${found.charCodeAt(0)};`);
}
