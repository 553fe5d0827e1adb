// Kernels by themselves, timed with the adapter's timestamps: rates beside what the adapter can do at best.
import type { Subject } from "../harness.ts";
import { measureCeilings } from "./kernels/ceilings.ts";
import { measureConvolutions } from "./kernels/convolutions.ts";
import { measurePointwise } from "./kernels/pointwise.ts";
import { measureProducts } from "./kernels/products.ts";

/** Rates of convolutions, products and pointwise kernels. */
export const kernels: Subject = {
  about: "rates of single kernels beside the adapter's measured ceilings",
  needsData: false,
  onlyByName: false,
  run: async function* ({ device, samples }) {
    const { ceilings, rows } = await measureCeilings(device, samples);
    yield* rows;
    yield* measureConvolutions(device, samples, ceilings);
    yield* measureProducts(device, samples, ceilings);
    yield* measurePointwise(device, samples, ceilings);
  },
};
