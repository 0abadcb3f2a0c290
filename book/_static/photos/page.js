// The page "Your photos in your browser": loads the network when it is asked to, and answers for each photo.
(function () {
  "use strict";

  const place = (id) => document.getElementById("photos-" + id);
  const stage = place("stage"), state = place("state"), button = place("load"), drop = place("drop");
  const files = place("files"), list = place("list"), missing = place("missing");
  if (!stage || !missing) return;
  const TOP = 5, folder = stage.dataset.files;
  let probabilities = null, loading = false, waiting = [], names = [];

  const percent = (share) => (100 * share).toFixed(1) + " %";

  if (typeof photosAbout === "undefined" || typeof photos === "undefined") {
    missing.textContent = "A file of this page did not load. Load the page again.";
    return;
  }
  if (photosAbout.missing) {
    missing.textContent =
      "This copy of the book was built without the runtime that the page needs, so nothing can be tried here: " +
      photosAbout.missing + ". Build the book again with a network, and it is here.";
    return;
  }

  function loadScript(name) {
    return new Promise((done, failed) => {
      const node = document.createElement("script");
      node.src = folder + name;
      node.onload = done;
      node.onerror = () => failed(new Error(name + " did not load"));
      document.head.append(node);
    });
  }

  async function load() {
    if (loading || probabilities) return;
    loading = true;
    button.setAttribute("aria-disabled", "true");
    state.textContent = "Loading.";
    try {
      await Promise.all([loadScript("runtime.js"), loadScript("model.js")]);
      state.textContent = "Starting the network.";
      probabilities = await photos.start(photosRuntime, photosModel);
    } catch (error) {
      loading = false;
      button.removeAttribute("aria-disabled");
      state.textContent = "It could not be loaded (" + error.message + "). Press the button to try again.";
      return;
    }
    names = photosModel.words.classes;
    photosRuntime.code = photosRuntime.wasm = photosModel.onnx = ""; // the text is no longer needed
    button.textContent = "Loaded: " + photosAbout.name + ", " + names.length.toLocaleString("en") + " classes";
    state.textContent = "Ready.";
    const queued = waiting;
    waiting = [];
    await answerAll(queued);
  }

  async function take(chosen) {
    const some = [...chosen];
    if (!some.length) return;
    if (probabilities) return answerAll(some);
    waiting.push(...some);
    const count = waiting.length === 1 ? "1 photo waits" : waiting.length + " photos wait";
    state.textContent = count + ". Load the model, and " + (waiting.length === 1 ? "it is" : "they are") + " answered.";
  }

  async function answerAll(some) {
    for (const [n, file] of some.entries()) {
      if (some.length > 1) state.textContent = "Photo " + (n + 1) + " of " + some.length + ".";
      await answer(file);
    }
    if (some.length) state.textContent = some.length === 1 ? "1 photo answered." : some.length + " photos answered.";
  }

  async function answer(file) {
    const item = document.createElement("li");
    list.prepend(item);
    const told = (words) => {
      const line = document.createElement("p");
      line.textContent = words;
      item.append(line);
    };
    let picture;
    try {
      picture = await photos.pixelsOf(file);
    } catch {
      return told(file.name + " is no picture that this browser can read. JPEG, PNG and WebP go.");
    }
    const image = new Image();
    image.alt = "Your photo " + file.name;
    image.src = URL.createObjectURL(file);
    item.append(image);
    const begun = performance.now();
    let found;
    try {
      found = await probabilities(picture);
    } catch (error) {
      return told(file.name + " could not be answered: " + error.message);
    }
    const ms = Math.round(performance.now() - begun), box = document.createElement("div"), bars = document.createElement("ol");
    const order = found.map((share, k) => [share, k]).sort((a, b) => b[0] - a[0]).slice(0, TOP);
    for (const [share, k] of order) {
      const row = document.createElement("li"), bar = document.createElement("span"), words = document.createElement("span");
      words.textContent = names[k].split(",")[0] + ", " + percent(share);
      bar.className = "photos-bar";
      bar.style.setProperty("--share", share);
      row.append(words, bar);
      bars.append(row);
    }
    box.append(bars);
    item.append(box);
    item.dataset.probabilities = JSON.stringify(found);
    const line = document.createElement("p");
    line.textContent = file.name + ", " + picture.width + " x " + picture.height + " pixels, " + ms + " ms";
    box.append(line);
  }

  button.textContent = "Load the model, " + photosAbout.megabytes.toFixed(0) + " MB";
  button.addEventListener("click", load);
  files.addEventListener("change", () => {
    take(files.files);
    files.value = ""; // so that the same photo can be chosen again
  });
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("photos-over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("photos-over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("photos-over");
    take(event.dataTransfer.files);
  });
  missing.hidden = true;
  stage.hidden = false;
})();
