// The server that a test runs against: `barrage run` where BARRAGE_BIN names the binary, the fake one otherwise.
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { FakeServer } from "./fake-server.mjs";

/** From starting the process to its telling where it listens, and from SIGTERM to its end; milliseconds. */
const START_MS = 60_000;
const STOP_MS = 20_000;

export async function startServer(settings = {}) {
  const server = process.env.BARRAGE_BIN ? new Binary(process.env.BARRAGE_BIN, settings) : new Fake();
  await server.start();
  return server;
}

class Server {
  /** What curl would do: a push of goim's to a room. */
  async push(room, text) {
    const answer = await fetch(`${this.address}goim/push/room?operation=1000&type=live&room=${room}`, { method: "POST", body: text });
    const { code, message } = await answer.json();
    if (code !== 0) throw new Error(`push: ${code} ${message}`);
  }
}

class Fake extends Server {
  isReal = false;
  fake = new FakeServer();

  async start() {
    await this.fake.start(this.fake.port ?? 0);
    this.address = `http://127.0.0.1:${this.fake.port}/`;
  }

  async kill() {
    await this.fake.stop();
  }

  async stop() {
    await this.fake.stop();
  }
}

class Binary extends Server {
  isReal = true;

  constructor(path, settings) {
    super();
    this.path = path;
    this.settings = settings;
  }

  /** On ports that the system chooses; started again, on the same ones and the same data. */
  async start() {
    this.directory ??= await mkdtemp(join(tmpdir(), "barrage-web-"));
    const { clients = "127.0.0.1:0", http = "127.0.0.1:0" } = this.known ?? {};
    const env = {
      ...process.env,
      BARRAGE_CONNECTOR__LISTEN: `["${clients}"]`,
      BARRAGE_CONNECTOR__GRPC: "127.0.0.1:0",
      BARRAGE_LOGIC__HTTP: http,
      BARRAGE_LOGIC__GRPC: "127.0.0.1:0",
      BARRAGE_ADMIN__LISTEN: "127.0.0.1:0",
      ...this.settings,
    };
    this.said = "";
    this.process = spawn(this.path, ["run"], { cwd: this.directory, env, stdio: ["ignore", "pipe", "pipe"] });
    this.ended = once(this.process, "exit");
    const found = new Promise((resolve, reject) => {
      for (const stream of [this.process.stdout, this.process.stderr]) {
        createInterface({ input: stream }).on("line", (line) => {
          this.said += `${line}\n`;
          if (line === "ready") resolve();
        });
      }
      void this.ended.then(([code, signal]) => reject(new Error(`barrage ended (${code ?? signal}):\n${this.said}`)));
      setTimeout(() => reject(new Error(`barrage was not ready within ${START_MS} ms:\n${this.said}`)), START_MS).unref();
    });
    found.catch(() => {});
    await found;
    this.address = this.told("page");
    this.clients = this.told("clients");
    this.known = { clients: this.clients, http: new URL(this.address).host };
    // It listens; what its services need of each other may still be on its way, and not every client tries again.
    const deadline = Date.now() + START_MS;
    while (!(await fetch(`${this.told("admin")}ready`)).ok) {
      if (Date.now() > deadline) throw new Error(`barrage is not ready within ${START_MS} ms:\n${this.said}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** What `barrage run` says when it is ready: a name and its value on each line. */
  told(name) {
    const value = new RegExp(`^\\s+${name}\\s+(\\S+)`, "m").exec(this.said)?.[1];
    if (value === undefined) throw new Error(`barrage does not tell ${name}:\n${this.said}`);
    return value;
  }

  /** A token for `uid`, as `barrage token` makes it. */
  async token(uid) {
    const { stdout } = await promisify(execFile)(this.path, ["token", uid], { cwd: this.directory });
    return stdout.trim();
  }

  async kill() {
    this.process.kill("SIGKILL");
    await this.ended;
  }

  async stop() {
    if (this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill("SIGTERM");
      const late = setTimeout(() => this.process.kill("SIGKILL"), STOP_MS);
      await this.ended;
      clearTimeout(late);
    }
    await rm(this.directory, { recursive: true, force: true });
  }
}
