// What tools/pages.py asks a page that stands open in the browser. Each function returns a list of faults in words.
window.look = {
  // Until fonts, pictures (the lazy ones too) and formulas are there.
  async settle() {
    document.querySelectorAll("img[loading=lazy]").forEach((img) => (img.loading = "eager"));
    await Promise.all([...document.images].map((img) => img.decode().catch(() => null)));
    await document.fonts.ready;
    await new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
  },

  seen: (node) => node.getClientRects().length > 0,
  label(node) {
    const name = node.tagName.toLowerCase() + (node.id ? "#" + node.id : "");
    const kinds = [...node.classList].slice(0, 2).map((c) => "." + c);
    const text = (node.textContent || node.alt || "").trim().replace(/\s+/g, " ").slice(0, 40);
    return name + kinds.join("") + (text ? ` “${text}”` : "");
  },
  // The nearest box around a node that scrolls or cuts sideways.
  box(node) {
    for (let up = node.parentElement; up && up !== document.body; up = up.parentElement) {
      if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(up).overflowX)) return up;
    }
    return null;
  },

  // Code is thousands of coloured words, and whether their colours can be read is asked of each for a tenth of a second.
  // One of each kind on each ground is as good as all; the others become plain text.
  thin() {
    const kept = new Set();
    const more = [...document.querySelectorAll("pre span, dt.sig span")].filter((word) => {
      if (word.children.length || word.id) return false;
      const ground = word.closest("[class*=highlight-], dt.sig");
      const key = [word.className, word.parentElement.className, ground?.className, ground?.parentElement.className].join("|");
      return kept.has(key) || !kept.add(key);
    });
    more.forEach((word) => word.replaceWith(word.textContent));
  },

  file: (img) => (img.getAttribute("src") || "").replace(/^data:.*/, "data:").split("/").pop(),
  shown() {
    return [...document.images].filter((img) => !img.naturalWidth).map((img) => `picture ${this.file(img)} does not show`);
  },

  // Every picture shows, has its words, and has two of its pixels for each pixel of the page.
  pictures() {
    const found = this.shown();
    for (const img of document.images) {
      const name = this.file(img);
      if (!img.hasAttribute("alt")) found.push(`picture ${name} has no alt text`);
      else if (/\.(png|svg|jpe?g|gif|webp)$/i.test(img.alt.trim())) found.push(`alt text of ${name} is a file name`);
      if (img.naturalWidth && this.seen(img) && !/\.svg($|\?)|^data:image\/svg/.test(img.currentSrc)) {
        const wide = img.getBoundingClientRect().width;
        if (img.naturalWidth < 2 * wide - 2) {
          found.push(`picture ${name} is not sharp at 2x: ${img.naturalWidth} pixels in ${Math.round(wide)}`);
        }
      }
    }
    return found;
  },

  // Every formula is typeset, and no TeX stands in the text.
  formulas() {
    const found = [];
    for (const math of document.querySelectorAll("span.math, div.math")) {
      const set = math.querySelector(".katex-html, math");
      if (math.querySelector("merror, .katex-error")) {
        found.push(`formula with an error: ${math.textContent.trim().slice(0, 60)}`);
      } else if (!set || (this.seen(math) && !set.getBoundingClientRect().width)) {
        found.push(`formula not typeset: ${math.textContent.trim().slice(0, 60)}`);
      }
    }
    const skip = "pre, code, script, style, textarea, kbd, math, .katex";
    const walk = document.createTreeWalker(document.querySelector("main, body"), NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const text = walk.currentNode.nodeValue;
      const raw = text.match(/\\\(|\\\[|\$\$|\$[^$\s](?:[^$\n]{0,80}[^$\s])?\$|\\(?:frac|sqrt|mathrm|text|times)\b/);
      if (raw && !walk.currentNode.parentElement.closest(skip)) found.push(`raw TeX in the text: ${text.trim().slice(0, 60)}`);
    }
    return found;
  },

  // The page does not scroll sideways; what does has a box of its own, which the keyboard reaches.
  sideways() {
    const found = [];
    const room = document.documentElement.clientWidth;
    const needs = document.documentElement.scrollWidth;
    if (needs > room) found.push(`scrolls sideways: ${needs} pixels in ${room}`);
    for (const node of document.querySelectorAll("main *")) {
      if (!this.seen(node)) continue;
      if (node.getBoundingClientRect().right > room + 1 && !this.box(node) && getComputedStyle(node).position !== "fixed") {
        if (!node.closest("svg")?.parentElement?.closest("svg")) found.push(`runs off the page: ${this.label(node)}`);
      }
      const scrolls = ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
      if (scrolls && node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0) {
        const reached = node.tabIndex >= 0 || node.querySelector("a[href], button, input, [tabindex='0']");
        if (!reached) found.push(`scrolls, but not by keyboard: ${this.label(node)}`);
      }
    }
    return found.slice(0, 8);
  },

  // What a search engine and a link elsewhere show.
  head(card) {
    const found = [];
    const meta = (name) => document.querySelector(`meta[name="${name}"], meta[property="${name}"]`)?.content?.trim() || "";
    if (document.title.trim().length < 10) found.push(`title too short: '${document.title}'`);
    if (!document.documentElement.lang) found.push("no language");
    if (!document.querySelector("meta[name=viewport]")) found.push("no meta viewport");
    const about = meta("description");
    if (about.length < 40 || about.length > 300) found.push(`description of ${about.length} letters: '${about.slice(0, 60)}'`);
    for (const name of ["og:title", "og:description", "og:image", "og:image:alt", "og:url", "twitter:card"]) {
      if (!meta(name)) found.push(`no ${name}`);
    }
    for (const name of ["og:image", "og:url"]) {
      if (meta(name) && !/^https:\/\//.test(meta(name))) found.push(`${name} is no whole address: ${meta(name)}`);
    }
    if (meta("og:image") && !meta("og:image").endsWith(card)) found.push(`og:image is ${meta("og:image")}, not ${card}`);
    return found;
  },

  link: (selector) => document.querySelector(selector)?.href?.replace(/#.*$/, "") || "",

  // Where the focus is after a Tab, and whether it can be seen.
  stop() {
    const node = document.activeElement;
    if (!node || node === document.body) return null;
    const style = getComputedStyle(node);
    const box = node.getBoundingClientRect();
    const ring = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1) || style.boxShadow !== "none";
    const there = box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0;
    return {
      label: this.label(node),
      skip: node.matches("a[href^='#main']"),
      search: node.matches(".search-button__button, input[name=q]"),
      theme: node.matches(".theme-switch-button"),
      sidebar: !!node.closest(".bd-sidebar-primary nav, nav[aria-label=Main]"),
      content: !!node.closest("article, main"),
      ring,
      there,
    };
  },

  // --- what a reader moves: tools/moved.py ---

  // The page for photos is left out: it computes for seconds, and tests/test_photos_page.py uses it.
  parts: () => [...document.querySelectorAll("figure.moving, [id$='-stage']:not(#photos-stage)")].map((part) => part.id),

  // Loaded and open to use.
  begun(name) {
    const part = document.getElementById(name);
    return part.matches("figure.moving") ? "ready" in part.dataset : !part.hidden;
  },

  kind(node) {
    if (node.disabled) return "disabled";
    const kind = node.getAttribute("role") || (node.type === "submit" ? "button" : node.type);
    return kind === "range" && node.value === node.max ? "full range" : kind;
  },

  // [mark, label] of what can be used; of a group of choices, or a grid, the one that the Tab key comes to.
  controls(name) {
    const part = document.getElementById(name), groups = new Set(), found = [];
    for (const node of part.querySelectorAll("[data-hand]")) delete node.dataset.hand; // of the time before
    for (const node of part.querySelectorAll("input, button, [role=gridcell][tabindex='0'], [role=application]")) {
      if (!this.seen(node) || (node.type === "radio" && groups.has(node.name))) continue;
      groups.add(node.name);
      node.dataset.hand = `${name} ${found.length}`;
      const words = node.closest("label")?.querySelector("span") || node.closest("label") || node;
      const label = node.ariaLabel || words.textContent;
      found.push([node.dataset.hand, label.trim().replace(/\s+/g, " ").slice(0, 40)]);
    }
    return found;
  },
  focus(mark) {
    const node = document.querySelector(`[data-hand='${mark}']`);
    node.focus();
    return this.kind(node);
  },

  // All words and numbers of a part: its text, its names for those who don't see it, and where its sliders stand.
  async said(name) {
    for (let i = 0; i < 2; i++) await new Promise((go) => setTimeout(go)); // what was put off until the hand is free
    const part = document.getElementById(name);
    const lines = [part.textContent];
    for (const node of part.querySelectorAll("[aria-label], [aria-valuetext], input")) {
      lines.push(node.ariaLabel || "", node.ariaValueText || "", node.type === "range" ? node.value : "");
      if (node.checked !== undefined) lines.push(node.checked ? "on" : "off");
    }
    return lines.join(" ").replace(/\d+ ms/g, "ms").replace(/\s+/g, " ").trim();
  },

  // Where the surface lies on which a pointer drags: a handle, or what takes keys of its own.
  surface(name, number) {
    const all = [...document.getElementById(name).querySelectorAll(".moving-handle, [role=application]")];
    const node = all.filter((node) => this.seen(node) && !node.querySelector(".moving-handle"))[number];
    if (!node) return null;
    node.scrollIntoView({block: "center"});
    const {x, y, width, height} = node.getBoundingClientRect();
    return {x, y, width, height};
  },
  // All that a part has drawn, to see whether it changed.
  drawn(name) {
    const part = document.getElementById(name);
    return [...part.querySelectorAll("svg, canvas")].map((node) => node.innerHTML || node.toDataURL()).join("|");
  },
};
