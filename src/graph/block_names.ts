// Readable names of blocks, from the names of their layers' nodes: `/layer1/layer1.0/conv1/Conv` is called
// `layer1/layer1.0/conv1`, and a block of several layers is called by the path they share.
import type { Node } from "./graph.ts";

/**
 * Names blocks.
 *
 * @param groups the layers (Conv and Gemm nodes) of each block
 * @returns one name for each block, all different
 */
export function blockNames(groups: readonly (readonly Node[])[]): string[] {
  const used = new Map<string, number>();
  return groups.map((layers, i) => {
    const name = groupName(layers) ?? `block${i}`;
    const count = (used.get(name) ?? 0) + 1;
    used.set(name, count);
    if (count === 1) return name;
    const numbered = `${name}#${count}`;
    used.set(numbered, 1);
    return numbered;
  });
}

function groupName(layers: readonly Node[]): string | undefined {
  const names = layers.map(layerName);
  const [first, last] = [names[0], names.at(-1)];
  if (first === undefined || last === undefined || names.length === 1) return first;
  const paths = names.map((name) => name.split("/"));
  const shared = paths[0]!.filter((part, i) =>
    paths.every((path) => path.slice(0, i + 1).join("/") === paths[0]!.slice(0, i + 1).join("/")) &&
    part !== ""
  );
  return shared.length > 0 ? shared.join("/") : `${first}..${last}`;
}

function layerName(node: Node): string {
  const path = node.name.replace(/^\/+/, "");
  const suffix = `/${node.opType}`;
  const name = path.endsWith(suffix) ? path.slice(0, -suffix.length) : path;
  return name === "" ? node.opType : name;
}
