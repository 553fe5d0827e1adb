// The methods by the name a recipe gives. A new one is a file beside this one and a line here.
import type { Recipe } from "../recipe.ts";
import type { Method } from "../session.ts";
import { blockwise } from "./blockwise.ts";
import { joint } from "./joint.ts";
import { layerwise } from "./layerwise.ts";
import { ptq } from "./ptq.ts";
import { qat } from "./qat.ts";

/** Every method. */
export const METHODS = { ptq, qat, layerwise, blockwise, joint } as const satisfies Record<
  Recipe["method"],
  Method
>;
