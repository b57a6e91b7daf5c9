// Explains an image with a camrt server: prints the predicted class with its probability and saves the overlay.
//
//   node explain.js SERVER IMAGE OVERLAY.png        e.g. node explain.js 127.0.0.1:50051 photo.jpg overlay.png

import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTO_FOLDER = fileURLToPath(new URL("../../proto", import.meta.url));
const PROTO_OPTIONS = { includeDirs: [PROTO_FOLDER], enums: String, longs: Number, defaults: true, oneofs: true };
const MESSAGE_BYTES = 32 * 1024 * 1024; // as the server; without it grpc-js refuses replies above 4 MiB
const TIMEOUT_MS = 30_000;

/** A client of camrt.v1.ExplainerService, over plain text: for servers on this machine. */
function connect(server) {
  const definition = protoLoader.loadSync("camrt/v1/explainer.proto", PROTO_OPTIONS);
  const { ExplainerService } = grpc.loadPackageDefinition(definition).camrt.v1;
  return new ExplainerService(server, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": MESSAGE_BYTES,
    "grpc.max_send_message_length": MESSAGE_BYTES,
  });
}

/** Explains the predicted class of an encoded image; the map comes as an overlay, PNG. */
function explain(client, encoded) {
  const request = { image: { encoded }, output: { encoding: "MAP_ENCODING_OVERLAY_PNG" } };
  return new Promise((resolve, reject) => {
    client.explain(request, { deadline: Date.now() + TIMEOUT_MS }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

async function main([server, imagePath, overlayPath]) {
  if (!overlayPath) throw new Error("Usage: node explain.js SERVER IMAGE OVERLAY.png");
  const client = connect(server);
  try {
    const { explanations } = await explain(client, await readFile(imagePath));
    const [{ prediction, saliencyMap }] = explanations;
    await writeFile(overlayPath, saliencyMap.data);
    console.log(`${prediction.className || prediction.classIndex} ${prediction.probability.toFixed(3)}`);
  } finally {
    client.close();
  }
}

main(process.argv.slice(2)).catch((error) => {
  const isRpcError = error.code in grpc.status && error.details !== undefined;
  console.error(isRpcError ? `${grpc.status[error.code]}: ${error.details}` : error.message);
  process.exitCode = 1;
});
