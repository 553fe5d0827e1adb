// KL calibration (TensorRT, Migacz 2017): the threshold T on |x| whose clipped distribution P differs least from what is
// left of it in as many groups as the grid has codes from 0 up, Q. 128 groups for signed 8 bits; in general 2^(b-1) for
// codes on both sides of 0, 2^b for codes on one. Every bin edge from 128 of 2048 (and `groups`) on is tried, as in the
// original; where the bins do not divide evenly, bin k of i belongs to group floor(k * groups / i). As in PPQ the lowest
// 0.2 % of the bins are left out (ReLU's zeros would drown the rest).
import type { Observer } from "./observer.ts";

/** Share of the bins, from 0 on, that is not looked at. */
const LEFT_OUT = 0.002;
/** Share of the bins that the smallest threshold covers. */
const LEAST_SHARE = 1 / 16;

/** Range = [-T, T] within what was seen, T = (i + 0.5) bins for the i of the least divergence. */
export const klObserver: Observer = {
  name: "kl",
  needsHistogram: true,
  absolute: true,
  chooseRange({ min, max, histogram: { low, high, counts } }, scheme) {
    const bound = Math.max(-min, max);
    if (bound === 0) return { min: 0, max: 0 };
    if (low !== 0) {
      throw new TypeError(`kl reads a histogram of |x| from 0 on, this is from ${low}`);
    }
    const signed = scheme.symmetric ? scheme.signed || min < 0 : min < 0 && max > 0;
    const groups = 2 ** (scheme.bits - (signed ? 1 : 0));
    const sums = prefixSums(counts);
    const start = Math.max(groups, Math.floor(counts.length * LEAST_SHARE));
    // One bin alone is its own group, so far from 0 the first threshold would win for seeing nothing.
    const least = Math.min(start - sums.first, sums.occupied.at(-1)!);
    let best = counts.length, bestDivergence = Infinity;
    for (let i = start; i <= counts.length; i++) {
      if (sums.occupied[i]! < least) continue;
      const divergence = divergenceAt(i, groups, counts, sums);
      if (divergence < bestDivergence) [best, bestDivergence] = [i, divergence];
    }
    const threshold = Math.min(bound, (best + 0.5) * high / counts.length);
    return {
      min: Math.max(Math.min(min, 0), -threshold),
      max: Math.min(Math.max(max, 0), threshold),
    };
  },
};

/** Sums over the bins below each edge, [bins + 1] each, so that a group costs no loop over its bins. */
interface PrefixSums {
  /** First bin that is looked at. */
  readonly first: number;
  readonly mass: Float64Array;
  /** Number of bins that are not empty. */
  readonly occupied: Float64Array;
  /** Sum of c ln c over the counts c. */
  readonly logs: Float64Array;
}

function prefixSums(counts: Float64Array): PrefixSums {
  const first = Math.floor(counts.length * LEFT_OUT);
  const [mass, occupied, logs] = [0, 1, 2].map(() => new Float64Array(counts.length + 1));
  counts.forEach((count, i) => {
    const seen = i < first ? 0 : count;
    mass![i + 1] = mass![i]! + seen;
    occupied![i + 1] = occupied![i]! + (seen > 0 ? 1 : 0);
    logs![i + 1] = logs![i]! + timesLog(seen);
  });
  return { first, mass: mass!, occupied: occupied!, logs: logs! };
}

/**
 * KL(P || Q) for a threshold behind bin i - 1. P: the first i bins, the rest added to the last of them. Q: the same bins
 * without the rest, the mass of each group spread evenly over the bins where P is not 0. Both are normalised.
 */
function divergenceAt(
  i: number,
  groups: number,
  counts: Float64Array,
  { first, mass, occupied, logs }: PrefixSums,
): number {
  const total = mass.at(-1)!, inside = mass[i]!, rest = total - inside;
  if (inside === 0) return Infinity;
  const last = i - 1 < first ? 0 : counts[i - 1]!;
  // sum P ln P - sum P ln Q, where ln Q is one number a group
  let sum = logs[i]! - timesLog(last) + timesLog(last + rest) - total * Math.log(total);
  for (let group = 0, from = 0; group < groups; group++) {
    const to = Math.ceil((group + 1) * i / groups);
    const held = mass[to]! - mass[from]!;
    const isLast = group === groups - 1;
    const inP = isLast ? held + rest : held;
    if (inP > 0) {
      if (held === 0) return Infinity;
      const bins = occupied[to]! - occupied[from]! + (isLast && last === 0 && rest > 0 ? 1 : 0);
      sum -= inP * Math.log(held / (bins * inside));
    }
    from = to;
  }
  return sum / total;
}

function timesLog(count: number): number {
  return count === 0 ? 0 : count * Math.log(count);
}
