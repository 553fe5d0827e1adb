// Exits with 0 when a GPU adapter can be opened and with 3 when there is none. A process of its own, because a process
// sees only the drivers that were there when it first asked.
import { GpuError } from "../core/errors.ts";
import { Device } from "../gpu/device.ts";

if (import.meta.main) {
  try {
    using device = await Device.open();
    console.log(device.adapterName);
  } catch (error) {
    if (!(error instanceof GpuError)) throw error;
    Deno.exit(3);
  }
}
