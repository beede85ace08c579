// One case: opened in a dialog, its texts unpacked only then.

const unpacked = new Map();
const KEPT = 8;
const shown = { id: null, sample: 0 };

/** The texts of the cases in one chunk: base64, deflated JSON. */
async function unpack(number) {
  if (!unpacked.has(number)) {
    const packed = atob(byId(`chunk-${number}`).textContent);
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
    if (unpacked.size >= KEPT) unpacked.delete(unpacked.keys().next().value);
    unpacked.set(number, new Response(stream).json());
  }
  return unpacked.get(number);
}

function showCase(id) {
  const hash = `#case=${encodeURIComponent(id)}`;
  if (location.hash === hash) openFromHash();
  else location.hash = hash;
}

function openFromHash() {
  const found = /^#case=(.*)$/s.exec(location.hash);
  if (!found) return;
  const row = index.cases.find((one) => one.id === decode(found[1]));
  if (row) openCase(row, 0);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function openCase(row, sample) {
  const dialog = byId('case');
  Object.assign(shown, { id: row.id, sample });
  byId('case-title').replaceChildren(visible(row.id), row.tier === null ? '' : el('span', { class: 'tag' }, visible(row.tier)));
  byId('case-body').replaceChildren(el('p', { class: 'muted' }, 'Unpacking…'));
  byId('previous-case').disabled = neighbour(-1) === undefined;
  byId('next-case').disabled = neighbour(1) === undefined;
  if (!dialog.open) {
    dialog.showModal();
    byId('case-title').focus();
  }
  try {
    const texts = (await unpack(row.chunk))[row.place];
    if (shown.id === row.id) byId('case-body').replaceChildren(...caseParts(row, texts, sample));
  } catch (error) {
    byId('case-body').replaceChildren(el('p', { class: 'banner' }, `This browser cannot unpack the texts (${error.message}); they are in attempts.jsonl.`));
  }
  byId('case-body').scrollTop = 0;
}

function neighbour(step) {
  const place = view.rows.findIndex((row) => row.id === shown.id);
  return place < 0 ? undefined : view.rows[place + step];
}

function caseParts(row, texts, sample) {
  const samples = [...new Set(texts.arms.flat().map((attempt) => attempt.sample))].sort((a, b) => a - b);
  const attempts = texts.arms.map((rows) => rows.filter((attempt) => attempt.sample === (samples.includes(sample) ? sample : samples[0])));
  const last = attempts.map((rows) => rows.at(-1));
  return [
    samples.length > 1 ? sampleChoice(row, samples, sample) : null,
    overview(row, last),
    ...compared(last),
    attemptLists(attempts),
    el('details', { class: 'part' }, el('summary', {}, 'Prompt of the first attempt'), numberedText(texts.asked, null, 'Prompt')),
  ].filter((part) => part !== null);
}

function sampleChoice(row, samples, sample) {
  const onchange = (event) => openCase(row, Number(event.target.value));
  const options = samples.map((one) => el('option', { value: one, selected: one === sample }, `${one + 1} of ${samples.length}`));
  return el('p', { class: 'sample' }, el('label', { for: 'case-sample' }, 'Sample '), el('select', { id: 'case-sample', onchange }, ...options));
}

/** Status and score, and beside them the points of each part of the metric; arms in columns. */
function overview(row, last) {
  const parts = [...new Set(last.flatMap((attempt) => Object.keys(attempt?.parts ?? {})))];
  const several = row.arms.some((cell) => cell.samples > 1);
  const outcome = [
    ['Status', last.map((attempt) => (attempt ? statusLabel(attempt.final ? attempt.status : 'unfinished') : NOTHING))],
    ['Reason', last.map((attempt) => visible(attempt?.reason ?? NOTHING))],
    [several ? 'Score of the case, all samples' : 'Score of the case', row.arms.map((cell) => decimals(cell.score))],
    ['Difference', row.arms.map((cell) => differenceCell(cell.difference))],
    ['Score of what parsed', last.map((attempt) => decimals(attempt?.score))],
  ];
  const points = parts.map((part) => [visible(part.replaceAll('_', ' ')), partCells(part, last)]);
  return el('div', { class: 'part overviews' }, sideTable('Outcome', outcome), points.length ? sideTable('Points', points) : null);
}

function sideTable(title, lines) {
  const head = el('tr', {}, el('th', { scope: 'col' }, title), ...index.arms.map((arm) => el('th', { scope: 'col', class: 'number' }, armLabel(arm))));
  const body = lines.map(([name, cells]) => el('tr', {}, el('th', { scope: 'row' }, name), ...cells.map((cell) => el('td', { class: 'number' }, cell))));
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `${title} by arm` },
    el('table', { class: 'overview' }, el('thead', {}, head), el('tbody', {}, ...body)));
}

/** Marked where a student has more or fewer points than the baseline. */
function partCells(part, last) {
  const base = last[0]?.parts[part];
  return last.map((attempt) => {
    const value = attempt?.parts[part];
    const more = value - base;
    const [kind, sign] = more > 1e-9 ? ['higher', '▲ '] : more < -1e-9 ? ['lower', '▼ '] : ['', ''];
    return el('span', { class: kind }, sign + points(value));
  });
}

function compared(last) {
  const labels = [...new Set(last.flatMap((attempt) => Object.keys(attempt?.blocks ?? {})))];
  const names = labels.length ? labels : ['answer'];
  return names.map((label) => {
    const texts = last.map((attempt) => (labels.length ? blockText(attempt, label) : attempt?.raw_response ?? null));
    const missing = index.arms.filter((_, n) => texts[n] === null);
    const notes = missing.map((arm) => el('p', { class: 'note' }, armLabel(arm), ` has no ${label === 'answer' ? 'answer' : `${label.toUpperCase()} block`}.`));
    return el('details', { class: 'part', open: true }, el('summary', {}, label === 'answer' ? 'Answers' : visible(label.toUpperCase()), el('span', { class: 'muted' }, ' side by side, each student against the baseline')),
      ...notes, compareTable(index.arms, texts, `${label} of all arms`));
  });
}

function blockText(attempt, label) {
  const place = attempt?.blocks[label];
  return place === undefined ? null : attempt.raw_response.slice(place[0], place[0] + place[1]);
}

function attemptLists(attempts) {
  const lists = attempts.map((rows, n) => el('section', { class: 'attempts', 'aria-label': `Attempts of ${index.arms[n]}` },
    el('h3', {}, armLabel(index.arms[n])),
    ...rows.map((attempt) => attemptCard(attempt, index.arms[n])),
    rows.length ? null : el('p', { class: 'muted' }, 'No attempt.')));
  return el('section', { class: 'part' }, el('h3', { class: 'part-title' }, 'Attempts'), el('div', { class: 'attempt-columns' }, ...lists));
}

function attemptCard(attempt, arm) {
  const place = placeOf(attempt);
  const name = `attempt ${attempt.attempt} of ${arm}`;
  const text = el('details', { class: 'raw', open: place !== null }, el('summary', {}, 'Raw answer'),
    attempt.raw_response ? numberedText(attempt.raw_response, place, `Raw answer, ${name}`) : el('p', { class: 'muted' }, 'Empty.'));
  const jump = () => {
    text.open = true;
    const line = text.querySelector('.blamed');
    line.scrollIntoView({ block: 'center' });
    line.focus({ preventScroll: true });
  };
  const where = place === null ? null : el('p', {}, el('button', { type: 'button', class: 'quiet jump', 'aria-label': `Go to the error of ${name}`, onclick: jump }, `${placeWords(attempt)} – go to line ${place.line + 1}`));
  return el('article', { class: 'attempt' },
    el('p', { class: 'attempt-head' }, el('strong', {}, `Attempt ${attempt.attempt}`), statusLabel(attempt.status), attempt.reason ? el('code', {}, visible(attempt.reason)) : null,
      attempt.truncated ? el('span', { class: 'tag' }, 'truncated at the token limit') : null, el('span', { class: 'muted' }, `score ${decimals(attempt.score)}`)),
    attempt.error ? el('p', {}, visible(attempt.error)) : null, where, figures(attempt), text);
}

function placeWords(attempt) {
  const parts = [attempt.block, attempt.line === null ? null : `line ${attempt.line}`, attempt.column === null ? null : `column ${attempt.column}`, attempt.line === null ? attempt.key : null];
  return parts.filter((part) => part !== null).join(', ');
}

/** The line of the raw text, from 0, that the error is about: by its place, else by its key. */
function placeOf(attempt) {
  if (attempt.status === 'success' || attempt.block === null) return null;
  const block = attempt.blocks[attempt.block.toLowerCase()];
  if (block === undefined) return null;
  const first = attempt.raw_response.slice(0, block[0]).split(LINE_END).length - 1;
  const lines = attempt.raw_response.slice(block[0], block[0] + block[1]).split(LINE_END);
  const line = attempt.line === null ? lineOfKey(attempt.key, lines) : Math.min(attempt.line, lines.length) - 1;
  if (line < 0) return null;
  const column = attempt.line === null || attempt.column === null ? null : attempt.column - 1;
  return { line: first + line, column, message: attempt.error ?? attempt.reason };
}

function lineOfKey(key, lines) {
  const name = (key ?? '').split('.').at(-1);
  return name ? lines.findIndex((line) => /^[\s-]*["']?([A-Za-z_][\w-]*)["']?\s*:/.exec(line)?.[1] === name) : -1;
}

function figures(attempt) {
  const rows = [
    ['Tokens', `${integer(attempt.prompt_tokens)} in (${integer(attempt.cached_tokens)} cached), ${integer(attempt.output_tokens)} out`],
    ['Time', `${seconds(attempt.queued_s)} queued, ${seconds(attempt.ttft_s)} to the first token, ${seconds(attempt.total_s)} in all`],
    ['Finished', `${seconds(attempt.finished_at)} into the run${attempt.finish_reason ? `, by ${attempt.finish_reason}` : ''}, seed ${attempt.seed}`],
  ];
  return el('dl', { class: 'figures-of' }, ...rows.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, visible(value)))));
}

function setUpCase() {
  const dialog = byId('case');
  const go = (step) => { const row = neighbour(step); if (row) showCase(row.id); };
  byId('previous-case').addEventListener('click', () => go(-1));
  byId('next-case').addEventListener('click', () => go(1));
  byId('close-case').addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('close', () => history.replaceState(null, '', `${location.pathname}${location.search}`));
  window.addEventListener('hashchange', openFromHash);
  openFromHash();
}
