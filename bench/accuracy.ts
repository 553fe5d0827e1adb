// The accuracy table of the README: students of ResNet-20 on CIFAR-10 for several bit widths and seeds, evaluated on all
// test images. `deno task bench:accuracy FOLDER [METHOD WEIGHT_BITS ACTIVATION_BITS SEEDS]`, where FOLDER holds
// resnet20.onnx, train_x.npy, train_y.npy, test_x.npy and test_y.npy. Prints one JSON line a run, then mean and deviation.
import { decodeNpy } from "../src/formats/npy.ts";
import { importOnnx } from "../src/formats/onnx_import.ts";
import { Device } from "../src/gpu/device.ts";
import { type ImageSet, inputSizeOf, recogniseImages } from "../src/data/image_set.ts";
import { distill } from "../src/distill/distill.ts";
import type { Recipe } from "../src/distill/recipe.ts";

const CIFAR10 = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

const ROWS: readonly Partial<Recipe>[] = [
  { method: "ptq", weightBits: 8, activationBits: 8 },
  { method: "blockwise", weightBits: 8, activationBits: 8 },
  {
    method: "ptq",
    weightBits: 4,
    activationBits: 4,
    weightObserver: "minmax",
    activationObserver: "minmax",
  },
  { method: "ptq", weightBits: 4, activationBits: 4 },
  { method: "blockwise", weightBits: 4, activationBits: 4 },
  { method: "blockwise", weightBits: 3, activationBits: 3 },
  { method: "blockwise", weightBits: 2, activationBits: 2 },
  { method: "qat", weightBits: 4, activationBits: 4, samples: 5000 },
];

const [folder, method, weightBits, activationBits, seeds = "0,1,2"] = Deno.args;
if (folder === undefined) {
  console.error(
    "usage: deno task bench:accuracy FOLDER [METHOD WEIGHT_BITS ACTIVATION_BITS SEEDS]",
  );
  Deno.exit(2);
}
const read = (name: string) => decodeNpy(Deno.readFileSync(`${folder}/${name}`), name);
const labels = (name: string) => Uint32Array.from(read(name).data as Uint8Array);
const model = importOnnx(Deno.readFileSync(`${folder}/resnet20.onnx`), { path: "resnet20.onnx" });
const images = (name: string) => recogniseImages(read(name), inputSizeOf(model, name), name);
const data = {
  calibration: images("train_x.npy"),
  calibrationLabels: labels("train_y.npy"),
  evaluation: images("test_x.npy"),
  evaluationLabels: labels("test_y.npy"),
};
using device = await Device.open();
// The teacher is evaluated once for all rows.
const teacherClasses = new WeakMap<ImageSet, Uint32Array<ArrayBuffer>>();
console.log(`adapter: ${device.adapterName}`);
for (const row of ROWS) {
  if (method !== undefined && row.method !== method) continue;
  if (weightBits !== undefined && row.weightBits !== Number(weightBits)) continue;
  if (activationBits !== undefined && row.activationBits !== Number(activationBits)) continue;
  const drops: number[] = [];
  for (const seed of seeds.split(",").map(Number)) {
    const { report } = await distill(model, data, { ...CIFAR10, ...row, seed }, {
      device,
      teacherClasses,
    });
    const { top1Student, top1Teacher, agreement } = report.network;
    const drop = 100 * ((top1Teacher ?? NaN) - (top1Student ?? NaN));
    drops.push(drop);
    const top1 = 100 * (top1Student ?? NaN);
    const memory = Math.round(Deno.memoryUsage().rss / 2 ** 20);
    console.log(
      JSON.stringify({ ...row, seed, top1, drop, agreement, ...report.seconds, memory }),
    );
    device.trim();
  }
  const mean = drops.reduce((sum, drop) => sum + drop, 0) / drops.length;
  const variance = drops.reduce((sum, drop) => sum + (drop - mean) ** 2, 0) / (drops.length - 1);
  const name = `${row.method} W${row.weightBits}A${row.activationBits}`;
  console.log(`${name}: drop ${mean.toFixed(2)} ± ${Math.sqrt(variance).toFixed(2)} points`);
}
