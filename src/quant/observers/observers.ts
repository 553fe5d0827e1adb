// The observers by name. A new one is a file beside this one and a line here.
import { aciqGaussObserver, aciqLaplaceObserver } from "./aciq.ts";
import { hfmgObserver } from "./hfmg.ts";
import { ifmrObserver } from "./ifmr.ts";
import { klObserver } from "./kl.ts";
import { minMaxObserver } from "./min_max.ts";
import { movingAverageObserver } from "./moving_average.ts";
import { mseObserver } from "./mse.ts";
import type { Observer } from "./observer.ts";
import { percentileObserver } from "./percentile.ts";

/** Every observer, by the name a recipe gives. */
export const OBSERVERS = {
  min_max: minMaxObserver,
  moving_average: movingAverageObserver,
  percentile: percentileObserver,
  mse: mseObserver,
  kl: klObserver,
  aciq_laplace: aciqLaplaceObserver,
  aciq_gauss: aciqGaussObserver,
  ifmr: ifmrObserver,
  hfmg: hfmgObserver,
} as const satisfies Record<string, Observer>;

/** Name of an observer. */
export type ObserverName = keyof typeof OBSERVERS;
