// Moving-average min-max calibration (Jacob et al. 2018): single extreme batches weigh less.
import type { Observer } from "./observer.ts";

/** Range = moving averages of the batches' minima and maxima. */
export const movingAverageObserver: Observer = {
  name: "moving_average",
  needsHistogram: false,
  chooseRange: ({ movingMin, movingMax }) => ({ min: movingMin, max: movingMax }),
};
