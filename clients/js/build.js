// Writes dist/: the client in one file, and the example that wants a compiler. Types come from tsc.
import { build } from "esbuild";

const shared = { bundle: true, minify: true, target: "es2022", legalComments: "none", logLevel: "warning" };
await build({ ...shared, entryPoints: ["src/index.js"], format: "esm", outfile: "dist/index.js" });
await build({ ...shared, entryPoints: ["examples/react.jsx"], format: "esm", jsx: "automatic", outfile: "dist/examples/react.js" });
