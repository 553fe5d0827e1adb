// The methods by the name a recipe gives. A new one is a file beside this one and a line here.
import type { Method } from "../session.ts";
import { blockwise } from "./blockwise.ts";
import { layerwise } from "./layerwise.ts";
import { ptq } from "./ptq.ts";

/** Every method. */
export const METHODS: Record<string, Method> = { ptq, layerwise, blockwise };
