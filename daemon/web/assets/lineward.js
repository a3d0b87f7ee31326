// Zoom, pan, keys and fetching ahead; everything else is in the server. No request leaves this machine.
(() => {
  "use strict";
  document.documentElement.lang = "en";
  const view = { scale: 1, x: 0, y: 0 };
  const ahead = new Map();
  const sheet = () => document.querySelector(".lw-sheet");
  const place = () => {
    const element = sheet();
    if (element) element.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  };
  const sharpen = () => {
    const picture = document.querySelector(".lw-part");
    if (picture && view.scale > 1.5 && picture.src.endsWith("/view")) {
      const whole = new Image();
      const from = picture.getAttribute("src");  // as the server wrote it; .src is the whole URL
      whole.onload = () => { if (picture.getAttribute("src") === from) picture.setAttribute("src", whole.getAttribute("src")); };
      whole.src = from.replace(/view$/, "whole");
    }
  };
  const zoom = (factor, x, y) => {
    const scale = Math.min(16, Math.max(1, view.scale * factor));
    view.x = x - (x - view.x) * (scale / view.scale);
    view.y = y - (y - view.y) * (scale / view.scale);
    view.scale = scale;
    if (scale === 1) { view.x = 0; view.y = 0; }
    place();
    sharpen();
  };
  const centre = (factor) => {
    const box = document.querySelector(".lw-viewer")?.getBoundingClientRect();
    if (box) zoom(factor, box.width / 2, box.height / 2);
  };
  const whole = () => { view.scale = 1; view.x = 0; view.y = 0; place(); };
  document.addEventListener("wheel", (event) => {
    const viewer = event.target.closest?.(".lw-viewer");
    if (!viewer) return;
    event.preventDefault();
    const box = viewer.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  let held = null;
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest?.(".lw-viewer")) return;
    held = { x: event.clientX - view.x, y: event.clientY - view.y };
  });
  document.addEventListener("pointermove", (event) => {
    if (!held || view.scale === 1) return;
    view.x = event.clientX - held.x;
    view.y = event.clientY - held.y;
    place();
  });
  addEventListener("pointerup", () => { held = null; });
  document.addEventListener("dragstart", (event) => { if (event.target.closest?.(".lw-viewer")) event.preventDefault(); });
  document.addEventListener("dblclick", (event) => { if (event.target.closest?.(".lw-viewer")) whole(); });
  document.addEventListener("click", (event) => { if (event.target.closest?.(".lw-whole")) whole(); });
  // A decision is on the part that can be seen: while its picture is on the way it is on none.
  const imageOf = (picture) => {
    const found = picture?.getAttribute?.("src")?.match(/^\/picture\/([^/]+)\//);
    return found ? decodeURIComponent(found[1]) : "";
  };
  const shown = () => {
    const picture = document.querySelector(".lw-part");
    return picture?.complete && picture.naturalWidth > 0 ? imageOf(picture) : "";  // a broken one is complete as well
  };
  document.addEventListener("error", (event) => {
    const picture = event.target, image = imageOf(picture), from = picture.getAttribute?.("src");
    if (image && picture.classList.contains("lw-heat")) emitEvent("lw_no_heat");
    if (!image || !picture.classList.contains("lw-part")) return;
    emitEvent("lw_broken", { image });  // the server knows whether there is one
    setTimeout(() => {
      if (picture.getAttribute("src") !== from) return;
      picture.removeAttribute("src");
      picture.setAttribute("src", from);
    }, 2000);
  }, true);
  const newType = () => document.querySelector(".lw-types.lw-open .lw-new-type input");
  let last = "";
  // A button that was clicked keeps the focus and presses itself on Enter, unless this sees the key first (capture).
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && event.target === newType()) event.target.blur();
    if (/input|textarea|select/i.test(event.target.tagName) || event.ctrlKey || event.altKey || event.metaKey) return;
    const enter = event.key === "Enter", desk = document.querySelector(".lw-desk");
    if (enter && event.target.closest?.(".lw-types, a")) return;
    const choosing = document.querySelector(".lw-types.lw-open") || (desk && last === "f");  // or it is about to open
    last = event.key.toLowerCase();
    if (event.key === "+" || event.key === "=") centre(1.5);
    else if (event.key === "-") centre(1 / 1.5);
    else if (event.key === "0") whole();
    else if (event.key.toLowerCase() === "n" && newType()) { event.preventDefault(); newType().focus(); }
    else if (enter && (choosing || (desk && event.repeat))) { event.preventDefault(); event.stopPropagation(); }
    if (!event.repeat && desk) emitEvent("lw_key", { key: event.key, image: shown() });
  }, true);
  window.lineward = {
    whole,
    shown,
    prefetch: (urls) => {
      for (const url of urls) if (!ahead.has(url)) { const image = new Image(); image.src = url; ahead.set(url, image); }
      while (ahead.size > 24) ahead.delete(ahead.keys().next().value);
    },
  };
})();
