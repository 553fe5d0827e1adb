// Static post-training quantization: the calibrated scales and nearest rounding, nothing trained. Every other method
// starts from here.
import type { Method } from "../session.ts";

/** Leaves the student as calibrated. */
export const ptq: Method = async () => {};
