// The name that a misspelt one was meant to be: for error messages.

/**
 * The name that was probably meant.
 *
 * @param name what was written
 * @param known the names there are
 * @returns the nearest known name by edit distance, `undefined` when none is near
 */
export function nearestName(name: string, known: readonly string[]): string | undefined {
  let best: string | undefined;
  // More than two fifths of the letters changed is another word, not a slip.
  let bound = Math.max(2, Math.floor(name.length * 0.4)) + 1;
  for (const candidate of known) {
    const distance = editDistance(name.toLowerCase(), candidate.toLowerCase());
    if (distance < bound) [best, bound] = [candidate, distance];
  }
  return best;
}

/** Levenshtein distance that counts two swapped neighbours as one slip (optimal string alignment). */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let above = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      // The rows are filled up to b.length, so every index below exists.
      let cost = Math.min(above[j]! + 1, row[j - 1]! + 1, above[j - 1]! + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        cost = Math.min(cost, before[j - 2]! + 1);
      }
      row.push(cost);
    }
    [before, above] = [above, row];
  }
  return above[b.length]!;
}
