// The table of cases: filter, search, sort, pages.

const STATUS = { success: ['✓', 'valid', 'ok'], format_error: ['✕', 'invalid', 'bad'], error: ['!', 'no answer', 'bad'], unfinished: ['…', 'not finished', 'muted'] };
const WANTED = {
  success: ['valid', (cell) => cell.status === 'success'],
  format_error: ['invalid', (cell) => cell.status === 'format_error'],
  error: ['no answer', (cell) => cell.status === 'error'],
  unfinished: ['not finished', (cell) => cell.status === 'unfinished'],
  repaired: ['valid after a retry', (cell) => cell.status === 'success' && cell.first_valid < cell.samples],
  higher: ['higher than the baseline', (cell) => cell.difference > 0],
  lower: ['lower than the baseline', (cell) => cell.difference < 0],
};

const index = JSON.parse(byId('index').textContent);
const view = { sort: 'order', down: false, page: 0, size: 50, arm: '', rows: index.cases };

function byId(id) {
  return document.getElementById(id);
}

function armLabel(name) {
  const number = index.arms.indexOf(name) % 6;
  return el('span', { class: `arm arm-${number}` }, el('span', { class: 'swatch', 'aria-hidden': 'true' }), visible(name));
}

function statusLabel(status) {
  const [sign, words, kind] = STATUS[status];
  return el('span', { class: `status ${kind}` }, el('span', { 'aria-hidden': 'true' }, sign), ` ${words}`);
}

/** Every column shown: its name, what it sorts by, and its cell; those of an arm name it. */
function columns() {
  const found = [
    { key: 'order', name: '#', value: (row) => row.order, cell: (row) => String(row.order + 1), numeric: true },
    { key: 'id', name: 'Case', value: (row) => row.id, cell: caseButton, head: true },
    { key: 'tier', name: 'Tier', value: (row) => row.tier, cell: (row) => (row.tier === null ? NOTHING : visible(row.tier)) },
  ];
  index.arms.forEach((arm, n) => { if (isWanted(n, view.arm)) found.push(...armColumns(arm, n)); });
  const reasons = (row) => [...new Set(row.arms.flatMap((cell, n) => (isWanted(n, view.arm) ? cell.reasons : [])))].join(', ');
  found.push({ key: 'reasons', name: 'Reasons', value: (row) => reasons(row) || null, cell: (row) => visible(reasons(row)), wide: true });
  return found;
}

function isWanted(n, arm) {
  return arm === '' || index.arms[n] === arm;
}

function armColumns(arm, n) {
  const found = [
    { key: `${n}.status`, arm, name: 'Status', value: (row) => row.arms[n].status, cell: (row) => statusLabel(row.arms[n].status) },
    { key: `${n}.score`, arm, name: 'Score', value: (row) => row.arms[n].score, cell: (row) => scoreCell(row.arms[n].score, n), numeric: true },
  ];
  if (arm !== index.baseline) {
    found.push({ key: `${n}.difference`, arm, name: 'Diff.', value: (row) => row.arms[n].difference, cell: (row) => differenceCell(row.arms[n].difference), numeric: true });
  }
  found.push({ key: `${n}.attempts`, arm, name: 'Tries', value: (row) => row.arms[n].attempts, cell: (row) => String(row.arms[n].attempts ?? NOTHING), numeric: true });
  return found;
}

function caseButton(row) {
  return el('button', { type: 'button', class: 'link', 'aria-haspopup': 'dialog', onclick: () => showCase(row.id) }, visible(row.id));
}

function scoreCell(score, arm) {
  if (score === null || score === undefined) return NOTHING;
  const bar = el('span', { class: `score-bar arm-${arm % 6}`, 'aria-hidden': 'true', style: `--share:${score}` });
  return el('span', { class: 'score' }, decimals(score), bar);
}

function differenceCell(value) {
  const kind = value > 1e-9 ? 'higher' : value < -1e-9 ? 'lower' : '';
  return el('span', { class: kind }, signed(value));
}

function matches(row, wanted) {
  if (wanted.tier !== '' && tierValue(row.tier) !== wanted.tier) return false;
  if (wanted.words && !haystack(row).includes(wanted.words)) return false;
  if (!wanted.arm && !wanted.status && !wanted.reason) return true;
  return row.arms.some((cell, n) => (
    isWanted(n, wanted.arm)
    && (!wanted.arm || isFinished(cell, wanted))
    && (!wanted.status || WANTED[wanted.status][1](cell))
    && (!wanted.reason || cell.reasons.includes(wanted.reason))
  ));
}

/** An arm alone keeps what it has finished; what is asked for beside it may be of any state. */
function isFinished(cell, wanted) {
  return cell.status !== 'unfinished' || Boolean(wanted.status || wanted.reason);
}

/** Of a select's option: no tier's name can be taken for that of none, nor for any. */
function tierValue(tier) {
  return tier === null ? 'none' : `is ${tier}`;
}

function haystack(row) {
  row.haystack ??= [row.id, row.tier ?? '', ...row.arms.flatMap((cell) => [...cell.reasons, ...cell.errors])].join('\n').toLowerCase();
  return row.haystack;
}

/** Rows without a value come last, whichever way it is sorted. */
function sorted(rows) {
  const column = columns().find((one) => one.key === view.sort);
  const turn = view.down ? -1 : 1;
  const keyed = rows.map((row) => [column.value(row) ?? null, row]);
  keyed.sort(([a, one], [b, two]) => {
    if (a === null || b === null) return (a === null) - (b === null) || one.order - two.order;
    const order = typeof a === 'number' ? a - b : a.localeCompare(b, 'en', { numeric: true });
    return order * turn || one.order - two.order;
  });
  return keyed.map(([, row]) => row);
}

function refresh() {
  const wanted = {
    words: byId('search').value.trim().toLowerCase(),
    arm: byId('filter-arm').value,
    tier: byId('filter-tier').value,
    status: byId('filter-status').value,
    reason: byId('filter-reason').value,
  };
  view.arm = wanted.arm;
  if (!columns().some((one) => one.key === view.sort)) Object.assign(view, { sort: 'order', down: false });
  drawHead();
  view.rows = sorted(index.cases.filter((row) => matches(row, wanted)));
  view.page = 0;
  drawPage();
}

function drawPage() {
  const pages = Math.max(1, Math.ceil(view.rows.length / view.size));
  const start = view.page * view.size;
  const all = columns();
  const rows = view.rows.slice(start, start + view.size).map((row) => drawRow(row, all));
  const empty = el('tr', {}, el('td', { colspan: all.length, class: 'empty' }, 'No case matches these filters.'));
  byId('table').tBodies[0].replaceChildren(...(rows.length ? rows : [empty]));
  byId('found').textContent = `${integer(view.rows.length)} of ${integer(index.cases.length)} cases`;
  byId('page').textContent = `Page ${view.page + 1} of ${pages}`;
  byId('previous-page').disabled = view.page === 0;
  byId('next-page').disabled = view.page >= pages - 1;
}

function drawRow(row, all) {
  const cells = all.map((column) => {
    const attributes = { class: [column.numeric ? 'number' : '', column.wide ? 'wide' : ''].join(' ').trim() || null };
    return column.head ? el('th', { scope: 'row', ...attributes }, column.cell(row)) : el('td', attributes, column.cell(row));
  });
  return el('tr', {}, ...cells);
}

function drawHead() {
  const groups = el('tr', {});
  const names = el('tr', {});
  const all = columns();
  all.forEach((column, n) => {
    if (column.arm === undefined) groups.append(el('td', {}));
    else if (all[n - 1].arm !== column.arm) {
      const span = all.filter((one) => one.arm === column.arm).length;
      groups.append(el('th', { scope: 'colgroup', colspan: span }, armLabel(column.arm)));
    }
    const order = view.sort === column.key ? (view.down ? 'descending' : 'ascending') : 'none';
    const button = el('button', { type: 'button', class: 'sort', 'data-key': column.key, onclick: () => sortBy(column.key) }, column.name);
    names.append(el('th', { scope: 'col', 'aria-sort': order, class: column.numeric ? 'number' : null }, button));
  });
  byId('table').tHead.replaceChildren(groups, names);
}

function sortBy(key) {
  view.down = view.sort === key && !view.down;
  view.sort = key;
  refresh();
  byId('table').querySelector(`[data-key="${key}"]`).focus();
}

function turnPage(step) {
  view.page += step;
  drawPage();
  byId('table').parentElement.scrollTop = 0;
}

function fillSelect(id, any, options) {
  byId(id).append(el('option', { value: '' }, any), ...options.map(([value, words]) => el('option', { value }, words)));
}

function setUpTable() {
  index.cases.forEach((row, order) => { row.order = order; });
  const cells = index.cases.flatMap((row) => row.arms);
  const found = new Set(index.cases.map((row) => row.tier));
  const tiers = [...found].filter((tier) => tier !== null).sort();
  const untiered = found.has(null) ? [[tierValue(null), 'no tier']] : [];
  const reasons = [...new Set(cells.flatMap((cell) => cell.reasons))].sort();
  const statuses = Object.entries(WANTED).filter(([, [, fits]]) => cells.some(fits));
  fillSelect('filter-arm', 'any', index.arms.map((arm) => [arm, arm]));
  fillSelect('filter-tier', 'any', [...tiers.map((tier) => [tierValue(tier), tier]), ...untiered]);
  fillSelect('filter-status', 'any', statuses.map(([key, [words]]) => [key, words]));
  fillSelect('filter-reason', 'any', reasons.map((reason) => [reason, reason]));
  byId('filters').addEventListener('input', refresh);
  byId('filters').addEventListener('submit', (event) => event.preventDefault());
  byId('filters').addEventListener('reset', () => setTimeout(refresh));
  byId('previous-page').addEventListener('click', () => turnPage(-1));
  byId('next-page').addEventListener('click', () => turnPage(1));
  byId('page-size').addEventListener('change', (event) => {
    view.size = Number(event.target.value);
    view.page = 0;
    drawPage();
  });
  refresh();
  byId('no-script').hidden = true;
  byId('explorer').hidden = false;
}

/** Filters set from elsewhere on the page; what is not named is cleared. */
function showOnly(wanted) {
  byId('filters').reset();
  for (const key of ['arm', 'tier', 'reason']) byId(`filter-${key}`).value = wanted[key] ?? '';
  setTimeout(() => { // after the form's own reset event
    for (const key of ['arm', 'tier', 'reason']) byId(`filter-${key}`).value = wanted[key] ?? '';
    refresh();
  });
  byId('cases-title').scrollIntoView();
  byId('cases-title').focus();
}
