// The text of a document with its marks, for mouse and keyboard. It only selects: what a key does to the annotation is
// decided and saved by app/marking.py, and what is shown is what was saved.
//
// Positions are code points everywhere, as Python counts them: the text is an array of its code points, and no position
// is ever taken from a JavaScript string, which counts UTF-16. Texts and labels only ever become text nodes.

const PAUSE = 60; // seconds without a key or a click that do not count as work
const PATIENCE = 3000; // milliseconds after which an action is sent again, in case it was lost; it is only done once
const EDITS = {
  Enter: "finish", a: "accept_all", f: "flag", s: "skip", u: "undo", PageDown: "next", PageUp: "previous", r: "reload",
};
const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "n", "p", "o", "c"];
const MARKS = [" ", "x"];
const CHOICES = "jklhgdebi"; // each takes one of the choices for the place that is selected

const panes = new WeakMap(); // by element, since Streamlit calls the function below each time that the data change

export default function ({ data, parentElement, setTriggerValue }) {
  if (!panes.has(parentElement)) panes.set(parentElement, new Pane(parentElement));
  const pane = panes.get(parentElement);
  pane.transmit = (action) => setTriggerValue("action", action);
  const timer = pane.show(data);
  return () => clearInterval(timer); // its own, since Streamlit may call this after the next show
}

class Pane {
  constructor(root) {
    this.root = root;
    this.byCharacters = false;
    this.pending = null; // the action that is being saved
    this.waiting = []; // keys that were pressed in the meantime, which mean what will be shown then
    this.keys = 0; // keys and clicks since the last action
    this.seconds = 0; // work since the last action
    this.lastUse = null;
    this.text = this.part("text");
    this.text.addEventListener("keydown", (event) => this.press(event));
    this.text.addEventListener("pointerdown", (event) => this.point(event));
    this.text.addEventListener("pointermove", (event) => event.buttons === 1 && this.drag(event));
    root.addEventListener("click", (event) => this.click(event));
    this.part("labels").addEventListener("change", (event) => {
      this.count();
      this.do(["label", Number(event.target.value)]);
      event.target.value = ""; // a choice that stays cannot be chosen again
    });
  }

  part(name) {
    return this.root.querySelector(`[data-part="${name}"]`);
  }

  // What is shown

  show(data) {
    const before = this.data;
    const moved = ["document", "finding", "offset"].some((name) => before?.[name] !== data[name]);
    const sent = this.pending;
    const changed = ["document", "finding", "revision"].some((name) => sent && sent[name] !== data[name]);
    if (changed || data.handled === sent?.id) this.pending = null;
    this.data = data;
    this.part("title").textContent = data.title;
    this.part("notice").textContent = data.notice;
    this.part("notice").hidden = !data.notice;
    this.part("reload").hidden = !data.conflict;
    this.part("skip").firstChild.textContent = `${data.skipping} `;
    for (const button of this.root.querySelectorAll("[data-key]:not([data-part='reload'])")) {
      button.hidden = data.hidden.includes(button.dataset.key);
    }
    this.showLabels();
    this.build();
    if (moved) {
      this.text.scrollTop = 0;
      this.anchor = this.head = this.units[0] ?? [0, 0];
      const first = data.focus ?? data.marks.find((mark) => mark.suggested);
      if (first) this.take(first);
    }
    this.select(this.anchor, this.head);
    clearInterval(this.timer);
    this.timer = setInterval(() => this.pending && this.transmit(this.pending), PATIENCE);
    setTimeout(() => this.goOn()); // not at once: Streamlit may lose what is sent while it calls us
    return this.timer;
  }

  showLabels() {
    const shown = JSON.stringify(this.data.labels);
    if (shown === this.shownLabels) return; // what has the focus keeps it
    this.shownLabels = shown;
    const children = this.data.labels.slice(0, 9).map(({ name, color }, place) => {
      const button = paint(make("button", { type: "button" }, `${name} `), { color });
      button.dataset.label = place;
      button.append(make("kbd", {}, String(place + 1)));
      return button;
    });
    if (this.data.labels.length > 9) {
      const choice = make("select", { ariaLabel: "More labels" });
      choice.append(make("option", { value: "", disabled: true, selected: true }, "More labels"));
      this.data.labels.slice(9).forEach(({ name }, place) => choice.append(make("option", { value: place + 9 }, name)));
      children.push(choice);
    }
    this.part("labels").replaceChildren(...children);
  }

  build() {
    const { text, words, marks } = this.data;
    this.characters = Array.from(text);
    this.units = this.byCharacters ? graphemesOf(text) : words;
    const length = this.characters.length;
    const inside = marks.map((mark) => ({ ...mark, from: Math.max(mark.start, 0), to: Math.min(mark.end, length) }));
    const edges = new Set([0, length, ...this.units.flat(), ...inside.flatMap((mark) => [mark.from, mark.to])]);
    const sorted = [...edges].sort((a, b) => a - b);
    const children = [];
    let shown, frame; // the mark that the present pieces belong to, and the element that frames them
    this.pieces = sorted.slice(0, -1).map((start, place) => {
      const end = sorted[place + 1];
      const element = make("span", {}, this.characters.slice(start, end).join(""));
      element.dataset.start = start;
      const covering = inside.filter((mark) => mark.from <= start && end <= mark.to).sort(byLength);
      if (covering[0] !== shown) {
        shown = covering[0];
        if (shown) children.push((frame = paint(make("span", { className: "mark", title: shown.name }), shown)));
      }
      if (shown) frame.append(element);
      else children.push(element);
      for (const mark of covering.filter((one) => one.to === end)) {
        const name = mark.suggested ? `${mark.label}?` : mark.label;
        const chip = paint(make("span", { className: "chip", title: mark.name }, name), mark);
        chip.dataset.start = start;
        children.push(chip);
      }
      return { start, end, element };
    });
    this.text.replaceChildren(...children);
  }

  select(anchor, head) {
    this.anchor = anchor;
    this.head = head;
    const [start, end] = this.selection();
    for (const { start: from, end: to, element } of this.pieces) {
      element.classList.toggle("selected", from < end && start < to);
    }
    this.pieces.find((piece) => piece.start === head[0])?.element.scrollIntoView({ block: "nearest" });
    const said = this.characters.slice(start, end).join("");
    const marks = this.selectedMarks().map((mark) => mark.name);
    this.part("said").textContent = this.units.length ? [said, ...marks].join(" · ") : "There are no words here.";
    this.showChoices();
  }

  // The choices for the place that is selected
  showChoices() {
    const shown = JSON.stringify(this.chosen());
    if (shown === this.shownChoices) return; // what has the focus keeps it
    this.shownChoices = shown;
    const children = this.chosen().map(({ name }, number) => {
      const button = make("button", { type: "button" }, `${name} `);
      button.dataset.choice = number;
      if (number < CHOICES.length) button.append(make("kbd", {}, CHOICES[number]));
      return button;
    });
    const focused = this.part("choices").matches(":focus-within");
    this.part("choices").replaceChildren(...children);
    if (focused) this.text.focus();
  }

  chosen() {
    const [start, end] = this.selection();
    const { choices } = this.data;
    const first = choices.find((choice) => choice.start < end && start < choice.end);
    return first ? choices.filter((choice) => choice.start === first.start) : [];
  }

  selection() {
    return [Math.min(this.anchor[0], this.head[0]), Math.max(this.anchor[1], this.head[1])];
  }

  // The mark that is exactly what is selected, or else those that the selection touches, the innermost first
  selectedMarks() {
    const [start, end] = this.selection();
    const exact = this.data.marks.filter((mark) => mark.start === start && mark.end === end);
    if (exact.length) return exact;
    const touching = this.data.marks.filter((mark) => mark.start < end && start < mark.end);
    return touching.sort(byLength);
  }

  take(mark) {
    const within = this.units.filter((unit) => mark.start <= unit[0] && unit[1] <= mark.end);
    const exact = within.length && within[0][0] === mark.start && within.at(-1)[1] === mark.end;
    if (exact) this.select(within[0], within.at(-1));
    else this.select([mark.start, mark.end], [mark.start, mark.end]);
  }

  // What is pressed and clicked

  press(event) {
    const undo = event.key === "z" && (event.ctrlKey || event.metaKey);
    if (event.isComposing || event.altKey || ((event.ctrlKey || event.metaKey) && !undo)) return;
    const digit = /^[1-9]$/.exec(event.key)?.[0] ?? /^Digit([1-9])$/.exec(event.code)?.[1];
    let key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (undo) key = "u";
    if (key === "Delete" || key === "Backspace") key = "x";
    const what = digit ? ["label", digit - 1] : [key, event.shiftKey];
    const known = [...Object.keys(EDITS), ...MOVES, ...MARKS, ...CHOICES].includes(key);
    if (!digit && !known) return;
    event.preventDefault();
    if (event.repeat && !MOVES.includes(key)) return; // a key that is held down decides nothing that nobody has seen
    this.count();
    this.do(what);
  }

  click(event) {
    const button = event.target.closest("button");
    if (!button) return;
    this.count();
    if (event.detail) this.text.focus(); // after the mouse, not after a key on the button
    const { key, choice, label } = button.dataset;
    if (choice !== undefined) this.do(["choice", Number(choice)]);
    else this.do(key ? [key, false] : ["label", Number(label)]);
  }

  point(event) {
    if (event.button !== 0) return;
    const unit = this.unitAt(event);
    if (!unit) return;
    this.count();
    const start = Number(event.target.dataset.start);
    const marks = this.data.marks.filter((mark) => mark.start <= start && start < mark.end);
    const innermost = marks.sort(byLength)[0];
    if (event.shiftKey) this.select(this.anchor, unit);
    else if (innermost) this.take(innermost);
    else this.select(unit, unit);
    this.start = event.shiftKey ? this.anchor : unit;
    this.dragging = false;
  }

  drag(event) {
    const unit = this.unitAt(event);
    if (!unit || !this.start) return;
    this.dragging ||= unit !== this.start;
    if (this.dragging) this.select(this.start, unit);
  }

  unitAt(event) {
    const element = this.root.elementFromPoint?.(event.clientX, event.clientY) ?? event.target;
    if (element.dataset.start === undefined) return undefined;
    const start = Number(element.dataset.start);
    return this.units.find((unit) => start < unit[1]) ?? this.units.at(-1);
  }

  count() {
    const now = performance.now() / 1000;
    if (this.lastUse !== null && now - this.lastUse <= PAUSE) this.seconds += now - this.lastUse;
    this.lastUse = now;
    this.keys += 1;
  }

  // What that does

  do(what) {
    this.waiting.push(what);
    this.goOn();
  }

  goOn() {
    while (this.waiting.length && !this.pending) {
      const [key, detail] = this.waiting.shift();
      if (this.data.hidden.includes(key)) continue;
      if (key === "label") this.label(this.data.labels[detail]);
      else if (key === "choice") this.choose(detail);
      else if (CHOICES.includes(key)) this.choose(CHOICES.indexOf(key));
      else if (MOVES.includes(key)) this.move(key, detail);
      else if (MARKS.includes(key)) this.decide(key);
      else if (key !== "r" || this.data.conflict) this.send(EDITS[key]);
    }
  }

  label(label) {
    const [start, end] = this.selection();
    if (label && start < end) this.send("mark", { start, end, label: label.name });
  }

  choose(number) {
    const choice = this.chosen()[number];
    if (!choice) return;
    const { start, end } = choice;
    this.send("choose", { start, end, choice: number });
    this.goToNext(end);
  }

  // Select the next suggestion, if there is one
  goToNext(place) {
    const following = this.data.marks.filter((one) => one.suggested && one.start >= place);
    if (following.length) this.take(following.sort((a, b) => a.start - b.start)[0]);
  }

  decide(key) {
    const mark = this.selectedMarks().find((one) => key === "x" || one.suggested);
    if (!mark) return;
    this.send(key === "x" ? "remove" : "mark", { start: mark.start, end: mark.end, label: mark.label });
    if (mark.suggested) this.goToNext(mark.end);
  }

  move(key, extend) {
    const { units } = this;
    if (key === "c") {
      this.byCharacters = !this.byCharacters;
      this.build();
      const [start, end] = this.selection();
      const within = this.units.filter((unit) => unit[0] < end && start < unit[1]);
      if (within.length) this.select(within[0], this.byCharacters ? within[0] : within.at(-1));
    } else if (key === "o") {
      this.select(this.head, this.anchor);
    } else if (key === "n" || key === "p") {
      const [start] = this.selection();
      const marks = [...this.data.marks, ...this.data.choices].sort((a, b) => a.start - b.start || b.end - a.end);
      const next = () => marks.find((mark) => mark.start > start) ?? marks[0];
      const previous = () => marks.findLast((mark) => mark.start < start) ?? marks.at(-1);
      const mark = key === "n" ? next() : previous();
      if (mark) this.take(mark);
    } else if (units.length) {
      const right = getComputedStyle(this.text).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
      const [start, end] = this.head;
      let unit;
      if (key === "Home") unit = units[0];
      else if (key === "End") unit = units.at(-1);
      else if (key === "ArrowUp") unit = this.nearestInLine(-1);
      else if (key === "ArrowDown") unit = this.nearestInLine(1);
      else if (key === right) unit = units.find((one) => one[0] >= end);
      else unit = units.findLast((one) => one[1] <= start);
      unit ??= this.head;
      this.select(extend ? this.anchor : unit, unit);
    }
  }

  // The unit in the line below (1) or above (-1) that is nearest to the present one
  nearestInLine(direction) {
    const box = ([start]) => this.pieces.find((piece) => piece.start === start).element.getBoundingClientRect();
    const middle = ({ left, right }) => (left + right) / 2;
    const here = box(this.head);
    const place = this.units.findIndex((unit) => unit[0] >= this.head[0]);
    let found, line;
    for (let at = place + direction; at >= 0 && at < this.units.length; at += direction) {
      const there = box(this.units[at]);
      if (Math.abs(there.top - here.top) < here.height / 2) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) > here.height / 2) break;
      const distance = Math.abs(middle(there) - middle(here));
      if (!found || distance < found.distance) found = { distance, unit: this.units[at] };
    }
    return found?.unit;
  }

  send(kind, stretch) {
    const { document, finding, revision, offset } = this.data;
    const place = stretch ? { ...stretch, start: stretch.start + offset, end: stretch.end + offset } : {};
    const id = `${Date.now()} ${Math.random()}`;
    this.pending = { id, document, finding, revision, kind, ...place, keys: this.keys, seconds: this.seconds };
    this.keys = this.seconds = 0;
    this.transmit(this.pending);
  }
}

function make(name, properties, text = "") {
  const element = Object.assign(document.createElement(name), properties);
  element.textContent = text;
  return element;
}

function paint(element, { color, suggested }) {
  element.style.setProperty("--label", color);
  element.classList.toggle("suggested", Boolean(suggested));
  return element;
}

function byLength(one, other) {
  return one.end - one.start - (other.end - other.start);
}

// The start and end of each character as people see it, such as a letter with its accents
function graphemesOf(text) {
  let start = 0;
  const found = [];
  for (const { segment } of new Intl.Segmenter(undefined, { granularity: "grapheme" }).segment(text)) {
    const end = start + Array.from(segment).length;
    if (segment.trim()) found.push([start, end]);
    start = end;
  }
  return found;
}
