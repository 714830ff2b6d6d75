// Builds the page (`node build.mjs page [DIRECTORY]`, by default into dist/, which is committed and embedded in the
// binary) and the tests (`node build.mjs test`, into .build/test). The same source gives the same bytes.
import { cpSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const [what, directory] = process.argv.slice(2);
const shared = { absWorkingDir: here, bundle: true, charset: "utf8", legalComments: "none", logLevel: "warning" };

if (what === "page") {
  const out = directory ?? join(here, "dist");
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  await build({
    ...shared,
    entryPoints: { app: "page/main.ts" },
    outdir: out,
    format: "esm",
    target: ["es2022", "chrome123", "firefox120", "safari17.5"],
    minify: true,
  });
  await build({
    ...shared,
    entryPoints: { app: "page/style.css" },
    outdir: out,
    target: ["chrome123", "firefox120", "safari17.5"],
    minify: true,
  });
  for (const file of ["index.html", "icon.svg"]) cpSync(join(here, "page", file), join(out, file));
} else if (what === "test") {
  const out = join(here, ".build/test");
  rmSync(out, { recursive: true, force: true });
  const tests = readdirSync(join(here, "test")).filter((name) => name.endsWith(".test.ts"));
  await build({
    ...shared,
    entryPoints: tests.map((name) => `test/${name}`),
    outdir: out,
    outExtension: { ".js": ".mjs" },
    format: "esm",
    platform: "node",
    target: "node20",
    packages: "external",
    sourcemap: "inline",
  });
} else {
  console.error("usage: node build.mjs page [DIRECTORY] | test");
  process.exit(2);
}
