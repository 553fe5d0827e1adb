// The methods by the name a recipe gives. One that trains unit by unit is a row of presets.ts; another is a file beside
// this one and a line here.
import { type PresetName, PRESETS } from "../presets.ts";
import type { Recipe } from "../recipe.ts";
import type { Method } from "../session.ts";
import { eptq } from "./eptq.ts";
import { joint } from "./joint.ts";
import { ptq } from "./ptq.ts";
import { qat } from "./qat.ts";
import { reconstruct } from "./reconstruct.ts";

const presets = Object.fromEntries(
  Object.keys(PRESETS).map((name) => [name, reconstruct(name as PresetName)]),
) as Record<PresetName, Method>;

/** Every method. */
export const METHODS: Readonly<Record<Recipe["method"], Method>> = {
  ...presets,
  ptq,
  qat,
  joint,
  eptq,
};
