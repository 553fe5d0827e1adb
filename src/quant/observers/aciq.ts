// ACIQ (Banner et al. 2019): values are taken to be Laplace or Gauss distributed, and the clipping value is the one with
// the least expected squared error, overload beyond it plus step^2 / 12 within. A tensor of one sign (after ReLU) is the
// half of such a distribution.
import { histogramPoints } from "../histogram.ts";
import type { Observer } from "./observer.ts";

/** The distribution that is assumed. */
export type AciqDistribution = "laplace" | "gauss";

/** Range = centre -+ alpha * b, b = mean |x - centre|. */
export const aciqLaplaceObserver: Observer = aciqObserver("aciq_laplace", "laplace");

/** Range = centre -+ alpha * sigma, sigma^2 = mean (x - centre)^2. */
export const aciqGaussObserver: Observer = aciqObserver("aciq_gauss", "gauss");

/**
 * Clipping value alpha in units of b (Laplace) or sigma (Gauss).
 *
 * The expected error 2 * integral over x > alpha of (x - alpha)^2 f(x) + alpha^2 / (3 * 4^bits) is least where
 * alpha = 6 * 4^bits * overload(alpha), found by bisection. The published constants are its roundings: 2.83, 3.89, 5.03
 * and 1.71, 2.15, 2.55 for 2, 3 and 4 bits. Half of a distribution has the alpha of one bit more.
 *
 * @param distribution the density
 * @param bits bits of the grid
 * @returns the constant
 */
export function clippingConstant(distribution: AciqDistribution, bits: number): number {
  const overload = OVERLOADS[distribution];
  let below = 0, above = 64;
  // 60 halvings reach float64's resolution.
  for (let i = 0; i < 60; i++) {
    const alpha = (below + above) / 2;
    if (6 * 4 ** bits * overload(alpha) > alpha) below = alpha;
    else above = alpha;
  }
  return above;
}

/** Integral over x > alpha of (x - alpha) f(x), f with b = 1 or sigma = 1. */
const OVERLOADS: Readonly<Record<AciqDistribution, (alpha: number) => number>> = {
  laplace: (alpha) => Math.exp(-alpha) / 2,
  gauss: gaussOverload,
};

/** By Simpson's rule; there is no error function in JavaScript. What lies 12 sigma further is below float64. */
function gaussOverload(alpha: number): number {
  const steps = 512, width = 12 / steps;
  let sum = 0;
  for (let i = 0; i <= steps; i++) {
    const t = i * width;
    const factor = i === 0 || i === steps ? 1 : i % 2 === 1 ? 4 : 2;
    sum += factor * t * Math.exp(-((alpha + t) ** 2) / 2);
  }
  return sum * width / 3 / Math.sqrt(2 * Math.PI);
}

function aciqObserver(name: string, distribution: AciqDistribution): Observer {
  return {
    name,
    needsHistogram: true,
    chooseRange({ min, max, histogram }, scheme) {
      if (min === 0 && max === 0) return { min, max };
      const { points, weights } = histogramPoints(histogram);
      const oneSided = min >= 0 || max <= 0;
      // A side has all codes of an unsigned or affine grid, half of those of a symmetric one with signs. What ReLU has
      // set to 0 is no part of the half distribution.
      if (oneSided) points.forEach((point, i) => weights[i]! *= point === 0 ? 0 : 1);
      const half = oneSided && !(scheme.symmetric && (scheme.signed || min < 0));
      const centre = oneSided || scheme.symmetric ? 0 : mean(points, weights, (x) => x);
      const spread = distribution === "laplace"
        ? mean(points, weights, (x) => Math.abs(x - centre))
        : Math.sqrt(mean(points, weights, (x) => (x - centre) ** 2));
      const alpha = spread * clippingConstant(distribution, scheme.bits + (half ? 1 : 0));
      return {
        min: Math.min(0, Math.max(min, centre - alpha)),
        max: Math.max(0, Math.min(max, centre + alpha)),
      };
    },
  };
}

function mean(points: Float64Array, weights: Float64Array, of: (x: number) => number): number {
  let sum = 0, total = 0;
  points.forEach((point, i) => {
    sum += weights[i]! * of(point);
    total += weights[i]!;
  });
  return sum / total;
}
