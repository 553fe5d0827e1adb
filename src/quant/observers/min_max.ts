// Min-max calibration: nothing that was seen is clipped.
import type { Observer } from "./observer.ts";

/** Range = smallest and largest value of all batches. */
export const minMaxObserver: Observer = {
  name: "min_max",
  needsHistogram: false,
  chooseRange: ({ min, max }) => ({ min, max }),
};
