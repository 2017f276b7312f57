// Runs the script of a page of `experiments.render` on a stub of the browser (test_render.py):
// node viewer_stub.js PAGE STEP writes what the canvases were told at a step, as JSON.
"use strict";
const fs = require("fs");
const html = fs.readFileSync(process.argv[2], "utf8");
const part = (tag) => html.split(tag)[1].split("</script>")[0];
const SIZE = { world: [720, 480], plots: [480, 480] };
const calls = { world: [], plots: [] };

function context(name) {
  const state = {};
  return new Proxy(state, {
    get: (_, key) => (key in state ? state[key]
      : (...args) => { calls[name].push([key, args, { ...state }]); }),
    set: (_, key, value) => { state[key] = value; return true; },
  });
}

const elements = {}, listeners = {};
const listen = (type, call) => { listeners[type] = call; };
function element(id) {
  const canvas = SIZE[id] && context(id);
  return elements[id] = elements[id] || {
    id, value: id === "speed" ? "1" : "0", textContent: id === "scene" ? part('id="scene">') : "",
    getContext: () => canvas, addEventListener: listen, setPointerCapture: () => {},
    getBoundingClientRect: () => ({ width: (SIZE[id] || [0])[0], height: (SIZE[id] || [0, 0])[1] }),
  };
}

let next = null;
globalThis.document = { getElementById: element };
globalThis.window = { devicePixelRatio: 1, addEventListener: listen,
                      requestAnimationFrame: (call) => { next = call; } };
new Function(part("<script>\n"))();
elements.slider.value = process.argv[3];
elements.slider.oninput();
calls.world.length = calls.plots.length = 0;
next(0);
const before = { ...calls, world: [...calls.world], plots: [...calls.plots] };
const text = (id) => [id, elements[id].textContent];
const texts = Object.fromEntries(["title", "details", "now", "play"].map(text));
// a hand on mouse and keys: turn, come closer, one step back, play for 0.1 s
const event = { preventDefault: () => {}, target: {}, pointerId: 1, buttons: 1 };
listeners.pointerdown(event);
listeners.pointermove({ ...event, movementX: 40, movementY: 20 });
listeners.wheel({ ...event, deltaY: -200 });
listeners.keydown({ ...event, key: "ArrowLeft" });
calls.world.length = 0;
next(100);
const back = elements.now.textContent, turned = [...calls.world];
listeners.keydown({ ...event, key: " " });
next(200);
process.stdout.write(JSON.stringify({
  ...before, texts, max: elements.slider.max, turned, back, played: elements.now.textContent,
}));
