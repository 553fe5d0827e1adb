// Deployed students of real networks on packed int8 codes: their logits are those of the host's integer reference, bit
// for bit, and their classes those of the simulation in fake-quantized float32.
import assert from "node:assert/strict";
import { agreement, topClasses } from "../../src/distill/evaluate.ts";
import { IntegerNetwork } from "../../src/distill/integer_network.ts";
import { integerForward } from "../_integer_network.ts";
import { testDevice } from "../_gpu.ts";
import { sharedDataMissing } from "../_shared_data.ts";
import { channelsFirst, type NetworkName } from "./_networks.ts";
import { ptqStudent, simulatedLogits } from "./_students.ts";

const IMAGES = 8;

for (const name of ["resnet20", "dscnn"] as const satisfies NetworkName[]) {
  for (const family of ["software", "gpu"] as const) {
    Deno.test({
      name: `IntegerNetwork gives the integer reference's logits on ${name} W8A8 [${family}]`,
      ignore: sharedDataMissing,
      fn: async () => {
        const made = await ptqStudent(name, IMAGES, { calibrated: IMAGES });
        const { student, real } = made;
        const device = await testDevice(family);
        const start = device.liveBytes;
        let found: Float32Array;
        {
          using network = new IntegerNetwork(device, student);
          found = await network.predict(real.images, real.preprocessing);
        }
        assert.equal(device.liveBytes, start);
        const x = channelsFirst(real.images, real.preprocessing);
        const expected = integerForward(student, x).get(student.graph.outputs[0]!.name)!.data;
        assert.deepEqual([...found], [...expected]);
        const simulated = topClasses(await simulatedLogits(made), IMAGES);
        assert.ok(agreement(topClasses(found, IMAGES), simulated) >= 1 - 1 / IMAGES);
        assert.ok(new Set(simulated).size > 1);
      },
    });
  }
}
