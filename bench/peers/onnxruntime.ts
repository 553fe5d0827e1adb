// ONNX Runtime on the processor: the user's fp32 file and the int8 file that stilla exported, batch 64.
import * as ort from "onnxruntime-node";
import { topClasses } from "../../src/distill/evaluate.ts";
import { decodeNpy } from "../../src/formats/npy.ts";
import { checkElements, row, wallTimes } from "../harness.ts";
import { modelFile } from "../resnet20.ts";
import { BATCH, NHWC_TO_NCHW, transpose } from "./cases.ts";
import { attempt, readJob, say, STUDENT_FILE } from "./protocol.ts";

/** Images whose class may differ: integer kernels round an exact half otherwise than stilla's float32. */
const MOST_DIFFERENT = 2;

const job = readJob();
say({ peer: `ONNX Runtime ${ort.env.versions.node} CPU, ${job.threads} threads` });

const { resnet20, expected } = job;
if (resnet20?.inference) {
  const { float, int8 } = resnet20.inference;
  await attempt(float, () =>
    infer(float, modelFile(resnet20.data), (logits) => {
      // float32 sums in another order, through 20 layers
      checkElements("logits", logits, (expected["logits"] ?? []).entries(), 1e-2);
    }));
  await attempt(int8, () =>
    infer(int8, `${job.folder}/${STUDENT_FILE}`, (logits) => {
      const found = topClasses(logits, BATCH);
      const different = (expected["int8 classes"] ?? []).filter((c, i) => c !== found[i]).length;
      if (different <= MOST_DIFFERENT) return;
      throw new Error(`${different} of ${BATCH} images get another class than in stilla`);
    }));
}

async function infer(
  name: string,
  file: string,
  check: (logits: Float32Array) => void,
): Promise<void> {
  const images = decodeNpy(Deno.readFileSync(`${job.folder}/batch.npy`), "batch.npy");
  const shape = NHWC_TO_NCHW.map((axis) => images.shape[axis]!);
  // stilla wrote the file: float32.
  const data = transpose(images.data as Float32Array, images.shape, NHWC_TO_NCHW);
  const session = await ort.InferenceSession.create(Deno.readFileSync(file), {
    intraOpNumThreads: job.threads,
    logSeverityLevel: 3,
  });
  const [input, output] = [session.inputNames[0]!, session.outputNames[0]!];
  const run = async () => {
    const results = await session.run({ [input]: new ort.Tensor("float32", data, shape) });
    return results[output]!.data as Float32Array;
  };
  check(await run());
  say({ row: row({ case: name, metric: "time" }, "ms", await wallTimes(job.samples, run)) });
  await session.release();
}
