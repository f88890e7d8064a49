// Starts the parts of the page, and filters the config.

function startConfig() {
  const search = document.getElementById("config-search");
  if (!search) return;
  const only = document.getElementById("config-differences");
  const rows = [...document.querySelectorAll("table.config tbody tr")];
  const filter = () => {
    const wanted = search.value.toLowerCase();
    for (const row of rows) {
      const agreed = Boolean(only && only.checked) && "same" in row.dataset;
      row.hidden = agreed || !row.textContent.toLowerCase().includes(wanted);
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("config-count").textContent = `${shown} of ${rows.length} keys`;
  };
  search.addEventListener("input", filter);
  only?.addEventListener("change", filter);
  filter();
}

startCharts();
if (data.samples.length) new Browser(document.getElementById("browser"), data.samples);
startConfig();
