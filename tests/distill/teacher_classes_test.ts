import assert from "node:assert/strict";
import type { ImageSet } from "../../src/data/image_set.ts";
import { distill, type Progress } from "../../src/distill/distill.ts";
import { testDevice } from "../_gpu.ts";
import { tinyNetwork } from "../cli/_fake_run.ts";

Deno.test("distill() evaluates the teacher once for runs that share teacherClasses", async () => {
  const device = await testDevice();
  const images = (count: number): ImageSet => ({
    count,
    height: 4,
    width: 4,
    channels: 3,
    layout: "NCHW",
    dtype: "uint8",
    data: Uint8Array.from({ length: count * 48 }, (_, i) => (i * i) % 251),
  });
  const evaluation = images(6);
  const teacherClasses = new WeakMap<ImageSet, Uint32Array<ArrayBuffer>>();
  const seen: string[] = [];
  const run = async (options: { teacherClasses?: typeof teacherClasses }) => {
    const onProgress = ({ stage, done, total }: Progress) => {
      if (stage === "evaluate") seen.push(`${done}/${total}`);
    };
    const { report } = await distill(
      tinyNetwork(),
      { calibration: images(8), evaluation, evaluationLabels: new Uint32Array(6) },
      { method: "ptq", samples: 8, augment: { copies: 1, shift: 0, flip: false } },
      { device, onProgress, ...options },
    );
    return report.network;
  };
  const alone = await run({});
  const first = await run({ teacherClasses });
  const second = await run({ teacherClasses });
  assert.deepEqual(first, alone);
  assert.deepEqual(second, alone);
  assert.equal(teacherClasses.get(evaluation)?.length, 6);
  assert.deepEqual(seen, ["6/12", "12/12", "6/12", "12/12", "6/6"]);
});
