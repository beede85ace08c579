// Text from models: shown as text, nothing hidden, long parts folded.

// The table of vllm_eval/hidden.py.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\u034F\u115F\u1160\u17B4\u17B5\u180B-\u180F\u2065\u3164\uFE00-\uFE0E\uFFA0\uFFF0-\uFFF8\u{E0000}-\u{E0FFF}]/gu;
const LINE_END = /\r\n|[\n\r\x85\u2028\u2029]/; // what counts as one in YAML
const LONG_LINE = 600;
const MANY_LINES = 200;
const AROUND = 15;
const NOTHING = '–';

/** An element with attributes, listeners (`onclick`) and children; strings become text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** `text` in isolation, with each character that shows nothing replaced by its code point. */
function visible(text) {
  const shown = el('bdi');
  let end = 0;
  for (const found of text.matchAll(HIDDEN)) {
    shown.append(text.slice(end, found.index));
    shown.append(found[0] === '\t' ? el('span', { class: 'tab', title: 'tab' }, '\t') : named(found[0]));
    end = found.index + found[0].length;
  }
  shown.append(text.slice(end));
  return shown;
}

function named(character) {
  const code = `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
  return el('span', { class: 'hidden-char', title: 'an invisible character' }, code);
}

/** One line with some spans marked; of a long one the part around the first, and buttons for the rest. */
function lineText(text, marks = []) {
  const holder = el('span', { class: 'text' });
  if (text.length <= LONG_LINE) {
    holder.append(...markedText(text, 0, text.length, marks));
    return holder;
  }
  const focus = marks.length ? marks[0][0] : 0;
  let low = Math.floor(Math.max(0, Math.min(focus - LONG_LINE / 3, text.length - LONG_LINE)));
  let high = low + LONG_LINE;
  const draw = () => {
    holder.replaceChildren(
      ...(low > 0 ? [unfold(low, () => { low = 0; draw(); })] : []),
      ...markedText(text, low, high, marks),
      ...(high < text.length ? [unfold(text.length - high, () => { high = text.length; draw(); })] : []),
    );
  };
  draw();
  return holder;
}

function unfold(count, onclick) {
  return el('button', { type: 'button', class: 'unfold', onclick }, `${integer(count)} more characters`);
}

function markedText(text, low, high, marks) {
  const parts = [];
  let end = low;
  for (const [from, to] of marks.map((span) => span.map((place) => Math.min(Math.max(place, low), high)))) {
    if (from > end) parts.push(visible(text.slice(end, from)));
    if (to > from) parts.push(el('mark', {}, visible(text.slice(from, to))));
    end = Math.max(end, to);
  }
  return [...parts, visible(text.slice(end, high))];
}

/** Numbered lines of a text, the middle of many folded; `place` is highlighted and always shown. */
function numberedText(text, place, label) {
  const lines = text.split(LINE_END);
  const box = el('div', { class: 'code', tabindex: '0', role: 'region', 'aria-label': label });
  const shown = lines.map((_, n) => n < MANY_LINES || (place && Math.abs(n - place.line) <= AROUND));
  for (let n = 0; n < lines.length; n += 1) {
    if (shown[n]) {
      box.append(...numberedLine(lines[n], n, place));
    } else {
      let end = n;
      while (end < lines.length && !shown[end]) end += 1;
      box.append(foldedLines(lines, n, end));
      n = end - 1;
    }
  }
  return box;
}

function foldedLines(lines, start, end) {
  const open = (event) => {
    const rows = lines.slice(start, end).flatMap((line, n) => numberedLine(line, start + n, null));
    event.currentTarget.replaceWith(...rows);
  };
  const words = `Show lines ${(start + 1).toLocaleString('en')} to ${end.toLocaleString('en')}`;
  return el('button', { type: 'button', class: 'unfold block', onclick: open }, words);
}

function numberedLine(line, number, place) {
  const blamed = place !== null && place.line === number;
  const marks = blamed && place.column !== null ? [columnSpan(line, place.column)] : [];
  const row = el('div', { class: blamed ? 'row blamed' : 'row' },
    el('span', { class: 'number', 'aria-hidden': 'true' }, String(number + 1)), lineText(line, marks));
  if (!blamed) return [row];
  row.setAttribute('tabindex', '-1');
  return [row, el('div', { class: 'row blame' }, el('span', { class: 'number', 'aria-hidden': 'true' }, '▲'), el('span', { class: 'text' }, visible(place.message)))];
}

/** The character at a column counted in code points, as a span of the string. */
function columnSpan(line, column) {
  const before = Array.from(line.slice(0, column * 2)).slice(0, column);
  const start = before.join('').length;
  const next = line.codePointAt(start);
  const end = start + (next === undefined ? 0 : String.fromCodePoint(next).length);
  return [start, end];
}

const minus = (text) => text.replace('-', '−');
const decimals = (value) => (value === null || value === undefined ? NOTHING : minus(value.toFixed(3)));
const signed = (value) => (value === null || value === undefined ? NOTHING : (value < 0 ? '' : '+') + minus(value.toFixed(3)));
const integer = (value) => value.toLocaleString('en');
const points = (value) => (value === undefined ? NOTHING : String(Math.round(value * 100) / 100));

/** As `words.seconds` has it. */
function seconds(value) {
  if (value === null || value === undefined) return NOTHING;
  if (value < 1) return `${(value * 1000).toFixed(value < 0.1 ? 1 : 0)} ms`;
  const digits = value < 10 ? 2 : value < 100 ? 1 : 0;
  return `${value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits })} s`;
}
