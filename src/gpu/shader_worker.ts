// A thread of `compileInThreads`: compiles each kernel it is sent on a device of its own, and answers when that is done.
// What does not compile is passed over; whoever runs the kernel learns why.
import type { Kernel } from "../../kernels/kernel.ts";
import { Device } from "./device.ts";

/** The part of the worker's scope that is used, which the library's types do not have. */
const scope = self as unknown as {
  onmessage: (event: MessageEvent<Kernel>) => void;
  postMessage(message: null): void;
};

const device = Device.open();
scope.onmessage = async ({ data: kernel }) => {
  await (await device).compile(kernel).catch(() => {});
  scope.postMessage(null);
};
