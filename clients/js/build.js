// Writes dist/: the client in one file, the one with the old names as a classic script, which runs before those of the page that use
// it, and the example that wants a compiler. Types come from tsc.
import { build } from "esbuild";

const shared = { bundle: true, minify: true, target: "es2022", legalComments: "none", logLevel: "warning" };
await build({ ...shared, entryPoints: ["src/index.js"], format: "esm", outfile: "dist/index.js" });
await build({ ...shared, entryPoints: ["src/pushstream.js"], format: "iife", outfile: "dist/pushstream.js" });
await build({ ...shared, entryPoints: ["examples/react.jsx"], format: "esm", jsx: "automatic", outfile: "dist/examples/react.js" });
