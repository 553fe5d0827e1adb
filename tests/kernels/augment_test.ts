import { augmentImages, packShiftFlip } from "../../kernels/augment.ts";
import { Rng } from "../../src/core/rng.ts";
import { assertClose, forEachTarget, randomArray, runKernel } from "../_gpu.ts";
import { shiftFlip } from "../_reference_quant.ts";

const EXACT = { rtol: 0, atol: 0 };

for (const [height, width, channels] of [[1, 1, 1], [5, 7, 3], [4, 6, 5], [3, 3, 17]] as const) {
  forEachTarget(
    `augmentImages() shifts and flips [${height}, ${width}, ${channels}]`,
    async (device) => {
      const images = 6, rng = new Rng(1), shape = [images, height, width, channels];
      const transforms = Array.from({ length: images }, () => ({
        dy: rng.integer(9) - 4,
        dx: rng.integer(9) - 4,
        flip: rng.uniform() < 0.5,
      }));
      transforms[0] = { dy: 0, dx: 0, flip: true };
      const size = height * width * channels;
      const x = randomArray(2, images * size), fill = randomArray(3, channels);
      const inputs = {
        x: { shape, data: x },
        fill: { shape: [channels], data: fill },
        transforms: Uint32Array.from(transforms, packShiftFlip),
      };
      const kernel = augmentImages({ images, height, width, channels }, device.target);
      const { y } = await runKernel(device, kernel, inputs, { y: shape });
      const expected = transforms.flatMap((transform, i) =>
        shiftFlip(x.slice(i * size, (i + 1) * size), [height, width, channels], fill, transform)
      );
      assertClose(y!, expected, EXACT, "y");
    },
  );
}

forEachTarget("augmentImages() gathers by the tables of the step", async (device) => {
  const images = 2, steps = 3, dataSet = 5, shape = [images, 2, 3, 3], size = 18;
  const x = randomArray(4, dataSet * size), fill = [1, 2, 3];
  const transforms = [
    { dy: 1, dx: 0, flip: false },
    { dy: 0, dx: 1, flip: false },
    { dy: 0, dx: -1, flip: true },
    { dy: 0, dx: 0, flip: true },
    { dy: -1, dx: 0, flip: false },
    { dy: 0, dx: 0, flip: false },
  ];
  const indices = [0, 4, 3, 1, 2, 2];
  const spec = { images, height: 2, width: 3, channels: 3, steps, gather: true };
  const inputs = {
    x: { shape: [dataSet, 2, 3, 3], data: x },
    fill: { shape: [3], data: fill },
    transforms: Uint32Array.from(transforms, packShiftFlip),
    indices: Uint32Array.from(indices),
    state: { shape: [16], data: [4, ...Array(15).fill(NaN)] }, // step 4 is row 1 of 3
  };
  const { y } = await runKernel(device, augmentImages(spec, device.target), inputs, { y: shape });
  const expected = [2, 3].flatMap((entry) => {
    const start = indices[entry]! * size;
    return shiftFlip(x.slice(start, start + size), [2, 3, 3], fill, transforms[entry]!);
  });
  assertClose(y!, expected, EXACT, "y");
});
