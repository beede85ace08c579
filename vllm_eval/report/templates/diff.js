// Lines of several texts beside each other: each against the first.

const MOST_STEPS = 4e6; // cells of a table; beyond it lines are compared place by place
const MOST_ALIKE = 1e4; // the same where each cell compares words
const MOST_WORDS = 1e5; // the same for the words of one line
const ALIKE = 0.5;
const WORD = /[\p{L}\p{N}]+/gu;
const TOKEN = /[\p{L}\p{N}]+|\s+|./gsu;
const KEY = /^\s*[\w-]+:/;

/** Pairs [line of a or null, line of b or null] in order: equal lines, then the most alike ones. */
function alignLines(a, b) {
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  const [endA, endB] = [a.length - tail, b.length - tail];
  const equal = (i, j) => (a[head + i] === b[head + j] ? 1 : 0);
  const same = bestPairs(endA - head, endB - head, equal).map(([i, j]) => [i + head, j + head]);
  const fixed = [...range(head).map((n) => [n, n]), ...same, ...range(tail).map((n) => [endA + n, endB + n])];
  return between(fixed, a.length, b.length, (i, j, nextA, nextB) => alignRun(a.slice(i, nextA), b.slice(j, nextB)).map(([m, n]) => [m === null ? null : m + i, n === null ? null : n + j]));
}

/** Fixed pairs, and what `fill` makes of the places between them. */
function between(fixed, countA, countB, fill) {
  const pairs = [];
  let [i, j] = [0, 0];
  for (const [nextA, nextB] of fixed) {
    pairs.push(...fill(i, j, nextA, nextB), [nextA, nextB]);
    [i, j] = [nextA + 1, nextB + 1];
  }
  return [...pairs, ...fill(i, j, countA, countB)];
}

/** Lines of which none is equal: the alike ones beside each other, the rest in order. */
function alignRun(a, b) {
  const words = [a, b].map((lines) => lines.map((line) => new Set(line.match(WORD) ?? [])));
  const small = a.length * b.length <= MOST_ALIKE;
  const alike = small ? bestPairs(a.length, b.length, (i, j) => likeness(words[0][i], words[1][j], a[i], b[j])) : [];
  return between(alike, a.length, b.length, (i, j, nextA, nextB) => (
    range(Math.max(nextA - i, nextB - j)).map((n) => [i + n < nextA ? i + n : null, j + n < nextB ? j + n : null])
  ));
}

/** From 0 to 1: shared words, or the same key; little is nothing. */
function likeness(one, two, line, other) {
  const shared = [...one].filter((word) => two.has(word)).length;
  const key = KEY.exec(line)?.[0];
  const alike = (2 * shared) / (one.size + two.size || 1);
  return key !== undefined && key === KEY.exec(other)?.[0] ? 1 : alike >= ALIKE ? alike : 0;
}

const range = (count) => Array.from({ length: count }, (_, n) => n);

/** Pairs of places in increasing order with the largest sum of `worth`; 0 pairs nothing. */
function bestPairs(countA, countB, worth) {
  if (!countA || !countB || countA * countB > MOST_STEPS) return [];
  const width = countB + 1;
  const best = new Float32Array((countA + 1) * width);
  for (let i = countA - 1; i >= 0; i -= 1) {
    for (let j = countB - 1; j >= 0; j -= 1) {
      const at = i * width + j;
      const gain = worth(i, j);
      const skip = Math.max(best[at + width], best[at + 1]);
      best[at] = gain > 0 ? Math.max(skip, Math.fround(gain + best[at + width + 1])) : skip;
    }
  }
  const pairs = [];
  for (let i = 0, j = 0; i < countA && j < countB;) {
    const at = i * width + j;
    if (best[at] === best[at + width]) i += 1;
    else if (best[at] === best[at + 1]) j += 1;
    else { pairs.push([i, j]); i += 1; j += 1; }
  }
  return pairs;
}

/** Rows of the table: of each text the number of a line, or null where it has none. */
function alignAll(texts) {
  const base = texts[0];
  const others = texts.slice(1).map((text) => placesOf(alignLines(base, text), base.length));
  const rows = [];
  for (let n = -1; n < base.length; n += 1) {
    if (n >= 0) rows.push([n, ...others.map((other) => other.beside[n])]);
    const extra = Math.max(0, ...others.map((other) => other.after[n + 1].length));
    for (let k = 0; k < extra; k += 1) rows.push([null, ...others.map((other) => other.after[n + 1][k] ?? null)]);
  }
  return rows;
}

/** Of each base line the one beside it, and those that come after it before the next. */
function placesOf(pairs, count) {
  const beside = new Array(count).fill(null);
  const after = range(count + 1).map(() => []);
  let last = 0;
  for (const [i, j] of pairs) {
    if (i === null) after[last].push(j);
    else { beside[i] = j; last = i + 1; }
  }
  return { beside, after };
}

/** The spans of a line whose words are not in the other one; of long lines what lies between the common ends. */
function changedSpans(line, other) {
  const [words, others] = [line, other].map((text) => text.match(TOKEN) ?? []);
  if (words.length * others.length > MOST_WORDS) return [changedMiddle(line, other)];
  const kept = new Set(bestPairs(words.length, others.length, (i, j) => (words[i] === others[j] ? words[i].length : 0)).map(([i]) => i));
  const spans = [];
  let at = 0;
  words.forEach((word, n) => {
    const bridge = !word.trim() && spans.length > 0 && spans.at(-1)[1] === at && !kept.has(n + 1);
    if (!kept.has(n) || bridge) {
      if (spans.length && spans.at(-1)[1] === at) spans.at(-1)[1] += word.length;
      else spans.push([at, at + word.length]);
    }
    at += word.length;
  });
  return spans.map(([from, to]) => trimmed(line, from, to));
}

function trimmed(line, from, to) {
  const text = line.slice(from, to);
  return text.trim() ? [from + text.search(/\S/), from + text.trimEnd().length] : [from, to];
}

function changedMiddle(line, other) {
  let start = 0;
  while (start < line.length && line[start] === other[start]) start += 1;
  let end = 0;
  while (end < line.length - start && end < other.length - start && line[line.length - 1 - end] === other[other.length - 1 - end]) end += 1;
  return [start, line.length - end];
}

const SIGNS = { same: ['', ''], changed: ['≠', 'differs: '], added: ['+', 'only here: '], removed: ['−', 'not in a student: '], none: ['', ''] };

/** A table with a column for each text; null where an arm has no such text. */
function compareTable(names, texts, label) {
  const lines = texts.map((text) => (text === null ? [] : text.replace(/\n$/, '').split(LINE_END)));
  const body = el('tbody');
  const rows = alignAll(lines);
  const draw = (from, to) => rows.slice(from, to).map((row) => el('tr', {}, ...row.flatMap((at, arm) => diffCells(row, arm, at, lines, texts))));
  body.append(...draw(0, MANY_LINES));
  if (rows.length > MANY_LINES) body.append(moreRows(rows.length, names.length, draw));
  const head = el('tr', {}, ...names.map((name) => el('th', { scope: 'col', colspan: 2 }, armLabel(name))));
  const widths = names.flatMap(() => [el('col', { class: 'sign' }), el('col')]);
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': label },
    el('table', { class: 'diff', style: `--arms:${names.length}` }, el('colgroup', {}, ...widths), el('thead', {}, head), body));
}

function moreRows(count, arms, draw) {
  const row = el('tr');
  const open = () => row.replaceWith(...draw(MANY_LINES, count));
  row.append(el('td', { colspan: arms * 2 }, el('button', { type: 'button', class: 'unfold block', onclick: open }, `Show lines ${MANY_LINES + 1} to ${integer(count)}`)));
  return row;
}

function diffCells(row, arm, at, lines, texts) {
  const kind = diffKind(row, arm, lines, texts);
  const [sign, words] = SIGNS[kind];
  if (at === null) return [el('td', { class: 'sign none' }), el('td', { class: 'none' })];
  const other = arm === 0 ? row.findIndex((place, n) => n > 0 && place !== null && lines[n][place] !== lines[0][at]) : 0;
  const marks = kind === 'changed' ? changedSpans(lines[arm][at], lines[other][row[other]]) : [];
  return [
    el('td', { class: `sign ${kind}` }, el('span', { 'aria-hidden': 'true' }, sign), words ? el('span', { class: 'sr' }, words) : null),
    el('td', { class: kind }, lineText(lines[arm][at], marks)),
  ];
}

function diffKind(row, arm, lines, texts) {
  if (row[arm] === null) return 'none';
  if (texts[0] === null || texts.every((text, n) => n === 0 || text === null)) return 'same';
  const line = lines[arm][row[arm]];
  if (arm > 0) return row[0] === null ? 'added' : lines[0][row[0]] === line ? 'same' : 'changed';
  const others = row.slice(1).map((place, n) => (texts[n + 1] === null ? line : place === null ? null : lines[n + 1][place]));
  if (others.every((other) => other === line)) return 'same';
  return others.some((other) => other !== null && other !== line) ? 'changed' : 'removed';
}
