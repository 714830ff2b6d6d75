/**
 * The moving picture behind the danmaku: a lake at night under northern lights. It stands for the stream that a platform
 * would show; drawn, so that the page needs nothing from anywhere.
 */

/** Drawn at most this wide, then stretched: half a megapixel is enough for a blurred sky and easy on a phone. */
const WIDTH_MAX = 960;
/** A frame each so many milliseconds: 30 a second. */
const FRAME_MS = 33;

/** The northern lights are drawn this small and stretched, which blurs them as they should be. */
const LIGHTS = { width: 112, height: 64 };

interface Star {
  x: number;
  y: number;
  size: number;
  phase: number;
}

/** Starts drawing on `canvas`; stands still where the viewer wants less motion, and rests while out of sight. */
export function showPicture(canvas: HTMLCanvasElement): void {
  const context = canvas.getContext("2d");
  const lights = Object.assign(document.createElement("canvas"), LIGHTS).getContext("2d");
  if (!context || !lights) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const random = seeded(7);
  const stars: Star[] = Array.from({ length: 130 }, () => ({ x: random(), y: random() * 0.6, size: 0.4 + random() * 1.3, phase: random() * 6.28 }));
  const ridges = [ridge(random, 0.09, 5), ridge(random, 0.12, 4), ridge(random, 0.07, 7)];
  let drawnMs = -FRAME_MS;

  const resize = () => {
    const { clientWidth, clientHeight } = canvas;
    if (clientWidth === 0) return;
    canvas.width = Math.min(WIDTH_MAX, clientWidth);
    canvas.height = Math.round((canvas.width * clientHeight) / clientWidth);
    draw(context, lights, stars, ridges, still.matches ? 12 : performance.now() / 1000);
  };
  new ResizeObserver(resize).observe(canvas);

  const tick = (now: number) => {
    requestAnimationFrame(tick); // not called while the page is hidden
    if (still.matches || now - drawnMs < FRAME_MS) return;
    drawnMs = now;
    draw(context, lights, stars, ridges, now / 1000);
  };
  requestAnimationFrame(tick);
}

function draw(c: CanvasRenderingContext2D, lights: CanvasRenderingContext2D, stars: Star[], ridges: number[][], t: number): void {
  const { width: w, height: h } = c.canvas;
  const shore = h * 0.7;

  const sky = c.createLinearGradient(0, 0, 0, shore);
  sky.addColorStop(0, "#0a1030");
  sky.addColorStop(0.55, "#1d2c63");
  sky.addColorStop(0.85, "#5b4a8f");
  sky.addColorStop(1, "#c26a86");
  c.fillStyle = sky;
  c.fillRect(0, 0, w, shore);

  for (const star of stars) {
    c.globalAlpha = 0.35 + 0.5 * Math.abs(Math.sin(t * 0.8 + star.phase));
    c.fillStyle = "#ffffff";
    c.fillRect(star.x * w, star.y * shore, star.size, star.size);
  }
  c.globalAlpha = 1;

  lights.clearRect(0, 0, LIGHTS.width, LIGHTS.height);
  aurora(lights, 0.42, 0.42, t, 0, "70, 240, 190");
  aurora(lights, 0.34, 0.36, t * 0.8, 2.1, "120, 130, 255");
  aurora(lights, 0.5, 0.25, t * 1.2, 4.4, "240, 110, 200");
  c.globalCompositeOperation = "lighter";
  c.drawImage(lights.canvas, 0, 0, w, shore);
  c.globalCompositeOperation = "source-over";

  c.fillStyle = "#fdf3e3";
  c.shadowColor = "#ffe9c9";
  c.shadowBlur = h * 0.08;
  c.beginPath();
  c.arc(w * 0.78, h * 0.2, h * 0.045, 0, 7);
  c.fill();
  c.shadowBlur = 0;

  const shades = ["#3d3c73", "#262a57", "#141a3a"];
  ridges.forEach((heights, i) => {
    mountains(c, heights, w, shore, h * (0.3 - i * 0.07), t * (4 + i * 7), shades[i] ?? "#141a3a");
  });

  const lake = c.createLinearGradient(0, shore, 0, h);
  lake.addColorStop(0, "#7d5482");
  lake.addColorStop(0.25, "#2b3268");
  lake.addColorStop(1, "#080d26");
  c.fillStyle = lake;
  c.fillRect(0, shore, w, h - shore);
  c.fillStyle = "#ffffff";
  for (let i = 0; i < 46; i += 1) {
    const depth = i / 46;
    const y = shore + (h - shore) * depth ** 1.4;
    const length = w * (0.02 + 0.1 * depth) * (0.6 + 0.4 * Math.sin(t * 1.4 + i * 1.7));
    const x = (w * (((i * 0.379) % 1) + 0.012 * Math.sin(t * 0.7 + i)) + t * 6 * (1 + depth)) % (w + length);
    c.globalAlpha = 0.05 + 0.09 * (1 - depth);
    c.fillRect(x - length, y, length, 1 + depth * 1.5);
    c.globalAlpha = 0.16 * (1 - depth);
    c.fillRect(w * 0.78 - length * 0.3 + Math.sin(t * 2 + i) * 5, y, length * 0.6, 1.5);
  }
  c.globalAlpha = 1;
}

/** A curtain of light; `y` and `height` are parts of the canvas, one column of which is one step. */
function aurora(c: CanvasRenderingContext2D, y: number, height: number, t: number, phase: number, rgb: string): void {
  const { width: w, height: h } = c.canvas;
  c.globalCompositeOperation = "lighter";
  for (let x = 0; x < w; x += 1) {
    const u = x / w;
    const bend = Math.sin(u * 5 + t * 0.35 + phase) * 0.5 + Math.sin(u * 11 - t * 0.22 + phase * 2) * 0.25;
    const strength = 0.5 + 0.5 * Math.sin(u * 8 + t * 0.5 + phase * 3);
    const bottom = h * (y + bend * height * 0.5);
    const light = c.createLinearGradient(0, bottom - h * height, 0, bottom);
    light.addColorStop(0, `rgba(${rgb}, 0)`);
    light.addColorStop(0.8, `rgba(${rgb}, ${0.05 + 0.2 * strength})`);
    light.addColorStop(1, `rgba(${rgb}, 0)`);
    c.fillStyle = light;
    c.fillRect(x, bottom - h * height, 1, h * height);
  }
}

function mountains(c: CanvasRenderingContext2D, heights: number[], w: number, shore: number, height: number, shift: number, colour: string): void {
  c.fillStyle = colour;
  c.beginPath();
  c.moveTo(0, shore);
  for (let x = 0; x <= w + 4; x += 4) {
    const at = (((x + shift) / w) * 96) % heights.length;
    const i = Math.floor(at);
    const a = heights[i] ?? 0;
    const b = heights[(i + 1) % heights.length] ?? 0;
    c.lineTo(x, shore - height * (a + (b - a) * (at - i)));
  }
  c.lineTo(w, shore);
  c.fill();
}

/** Heights of 0–1 that begin again where they end. */
function ridge(random: () => number, roughness: number, peaks: number): number[] {
  const phases = [random() * 6.28, random() * 6.28];
  return Array.from({ length: 192 }, (_, i) => {
    const turn = (i / 192) * 6.2832;
    const wave = 0.5 + 0.28 * Math.sin(turn * peaks + (phases[0] ?? 0)) + 0.2 * Math.sin(turn * (peaks * 2 + 1) + (phases[1] ?? 0));
    return Math.max(0.08, wave * 0.8 + roughness * random());
  });
}

function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
}
