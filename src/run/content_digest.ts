// Content of files and arrays as one short name, so that a result is found again by what it was made from.
import { createHash } from "node:crypto";
import type { RecognisedData } from "../distill/distill.ts";

/**
 * Names bytes by their content.
 *
 * @param parts texts and arrays; where one ends and the next begins counts
 * @returns SHA-256 in hex
 */
export function contentDigest(parts: readonly (string | ArrayBufferView)[]): string {
  const hash = createHash("sha256");
  for (const part of parts) {
    const bytes = typeof part === "string"
      ? new TextEncoder().encode(part)
      : new Uint8Array(part.buffer, part.byteOffset, part.byteLength);
    hash.update(`${bytes.length} `).update(bytes);
  }
  return hash.digest("hex");
}

/**
 * Names the inputs and labels of a run by their content.
 *
 * @param data inputs and labels; what is absent counts as such
 * @returns SHA-256 in hex
 */
export function dataDigest(data: RecognisedData): string {
  const sets = [data.calibration, data.evaluation].flatMap((set) => {
    if (set === undefined) return ["none"];
    const { data: elements, ...form } = set;
    return [JSON.stringify(Object.entries(form).sort()), elements];
  });
  const labels = [data.calibrationLabels, data.evaluationLabels].map((list) => list ?? "none");
  return contentDigest([...sets, ...labels]);
}
