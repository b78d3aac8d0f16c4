// Runs TensorFlow.js on lines of JSON: one request on each line of standard input, one answer on each of output.
// {"do": "run", "model": PATH, "inputs": [{"shape", "dtype", "values"}]}  ->  {"outputs": [{"shape", "values"}]}
// {"do": "save", "config": MODEL CONFIGURATION, "folder": PATH, "scale": N}  ->  {} ; writes model.json
// {"error": TEXT} where it fails.
'use strict';
const fs = require('fs');
const path = require('path');
const readline = require('readline');
const tf = require('@tensorflow/tfjs');

function loader(file) {
  return {
    load: async () => {
      const model = JSON.parse(fs.readFileSync(file, 'utf8'));
      const specs = model.weightsManifest.flatMap((group) => group.weights);
      const data = Buffer.concat(
        model.weightsManifest.flatMap((group) => group.paths.map((p) => fs.readFileSync(path.join(path.dirname(file), p)))));
      return {
        modelTopology: model.modelTopology, weightSpecs: specs, format: model.format,
        weightData: data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength),
      };
    },
  };
}

async function run(request) {
  const model = await tf.loadLayersModel(loader(request.model));
  const inputs = request.inputs.map((x) => tf.tensor(x.values, x.shape, x.dtype));
  let outputs = model.predict(inputs.length === 1 ? inputs[0] : inputs);
  outputs = Array.isArray(outputs) ? outputs : [outputs];
  return {outputs: outputs.map((y) => ({shape: y.shape, values: Array.from(y.dataSync())}))};
}

async function save(request) {
  const model = await tf.models.modelFromJSON(request.config);
  let number = 0;
  // Numbers of another range in every block, so that exchanged gates show.
  model.setWeights(model.getWeights().map((w) => {
    const columns = w.shape[w.shape.length - 1];
    const values = Array.from({length: w.size}, (_, n) =>
      Math.sin(12.9898 * (n + 1) + 78.233 * ++number) * (0.2 + 0.8 * (n % columns) / columns));
    return tf.tensor(values, w.shape);
  }));
  await model.save({
    save: async (artifacts) => {
      const manifest = [{paths: ['a.bin', 'b.bin'], weights: artifacts.weightSpecs}];
      const data = Buffer.from(artifacts.weightData);
      const cut = Math.floor(data.length / 2) + 1;  // in the middle of a weight, and of a number
      fs.writeFileSync(path.join(request.folder, 'a.bin'), data.subarray(0, cut));
      fs.writeFileSync(path.join(request.folder, 'b.bin'), data.subarray(cut));
      const model = {modelTopology: artifacts.modelTopology, format: artifacts.format, weightsManifest: manifest};
      fs.writeFileSync(path.join(request.folder, 'model.json'), JSON.stringify(model));
      return {modelArtifactsInfo: {dateSaved: new Date(), modelTopologyType: 'JSON'}};
    },
  });
  return {};
}

const does = {run, save};
const queue = readline.createInterface({input: process.stdin});
let last = tf.setBackend('cpu');
queue.on('line', (line) => {
  last = last.then(async () => {
    let answer;
    try {
      const request = JSON.parse(line);
      answer = await does[request.do](request);
    } catch (error) {
      answer = {error: String(error && error.message || error)};
    }
    process.stdout.write(JSON.stringify(answer) + '\n');
  });
});
