"use strict";
{
  const GAP = 24;
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  const color = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };

  // The colours stand in the style sheet alone; a specification asks for them by the names of its marks' styles
  const theme = () => {
    const [ink, soft, line, rule, paper] = ["ink", "soft", "line", "rule", "paper"].map(color);
    const [red, blue, green, purple, orange, sky] = ["red", "blue", "green", "purple", "orange", "sky"].map(color);
    const font = getComputedStyle(document.body).fontFamily;
    return {
      background: null, font, padding: { left: 0, top: 4, right: 6, bottom: 8 },
      view: { stroke: null },
      axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: rule, tickColor: rule, labelFontSize: 12,
              titleFontSize: 12, titleFontWeight: "normal", labelPadding: 5, titlePadding: 8, tickSize: 4, gridOpacity: 0.7,
              labelFlush: false },
      header: { labelColor: ink, labelFontSize: 14, labelFontWeight: 600, labelAnchor: "start", labelPadding: 6 },
      title: { color: ink, fontSize: 14, fontWeight: 600, anchor: "start", offset: 10 },
      legend: { labelColor: ink, labelFontSize: 12.5, labelLimit: 260, symbolSize: 110, symbolStrokeWidth: 0, columnPadding: 16,
                offset: 6 },
      facet: { spacing: GAP }, concat: { spacing: GAP },
      range: { category: [red, blue, green, purple, orange, sky, rule], ordinal: [blue, soft, orange, purple] },
      text: { color: soft },
      style: {
        fitted: { color: color("sand") }, destroyed: { color: rule }, published: { color: ink }, limit: { color: soft },
        note: { color: soft, fontSize: 11 }, prior: { color: color("prior") }, hollow: { fill: paper }, bar: { color: sky },
        range: { color: blue }, printed: { color: ink },
      },
    };
  };

  // Rows come as [keys, values, values, ...], one list for rows of equal keys
  const rows = (packed) => packed.flatMap(([keys, ...lists]) =>
    lists.map((list) => Object.fromEntries(keys.map((key, i) => [key, list[i]]))));

  const read = (figure) => {
    const spec = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
    spec.datasets = Object.fromEntries(Object.entries(spec.datasets).map(([name, packed]) => [name, rows(packed)]));
    return { figure, spec, place: figure.querySelector(".chart"), view: null };
  };

  // As many panels side by side as there is room for
  const columnsOf = ({ spec, place }) =>
    Math.max(1, Math.min(spec.usermeta.panels, Math.floor(place.clientWidth / spec.usermeta.least)));

  const laid = (chart, columns) => {
    const room = chart.place.clientWidth;
    const narrow = room < 480;
    const spec = structuredClone(chart.spec);
    if (spec.spec || spec.concat) spec.columns = columns;
    const width = Math.max(140, Math.floor(room / columns) - spec.usermeta.beside);
    for (const part of spec.concat ?? [spec.spec ?? spec]) part.width = width;
    const config = theme();
    config.title.fontSize = narrow ? 12 : 14;
    config.title.limit = room / columns - (narrow ? 50 : 30);
    config.header.labelLimit = room / columns - (narrow ? 70 : 90);
    config.axis.labelLimit = narrow ? 0.3 * room : 220;
    config.legend.labelLimit = Math.min(260, room - 140);
    config.legend.columns = Math.max(1, Math.floor(room / spec.usermeta.entry));
    return { spec, config };
  };

  // Each panel takes what axes, gaps and labels leave, whose width is known only when they are drawn
  const widen = async (chart) => {
    chart.room = chart.place.clientWidth;
    for (let time = 0; time < 2; time += 1) {
      const left = chart.room - chart.place.querySelector("svg").getBoundingClientRect().width;
      // nobody sees that little missing on the right, and drawing again takes long
      if (left >= -2 && left < 12) return;
      const signals = chart.view.getState({ signals: () => true }).signals;
      const name = ["child_width", "childWidth", "width"].find((one) => one in signals);
      const width = Math.max(140, Math.floor(signals[name] + left / chart.columns));
      await chart.view.signal(name, width).resize().runAsync();
    }
  };

  const draw = async (chart) => {
    const columns = columnsOf(chart);
    const { spec, config } = laid(chart, columns);
    for (const param of spec.params ?? []) if (param.bind && chart.view) param.value = chart.view.signal(param.name);
    chart.view?.finalize();
    const { view } = await vegaEmbed(chart.place, spec, {
      mode: "vega-lite", renderer: "svg", ast: true, config, actions: false, tooltip: { theme: "custom" },
    });
    Object.assign(chart, { view, columns });
    await widen(chart);
  };

  // A new number of columns needs a new chart, a new width does not
  const fit = (chart) => (columnsOf(chart) === chart.columns ? widen(chart) : draw(chart));

  const pause = () => new Promise((done) => { setTimeout(done); });

  const start = async () => {
    const charts = [...document.querySelectorAll("figure.charted")].map(read);
    for (const chart of charts) {
      chart.figure.classList.add("drawn");
      try {
        await draw(chart);
        await pause();
      } catch (error) {
        // the picture stays where the chart cannot be drawn
        chart.figure.classList.remove("drawn");
        console.error(error);
      }
    }
    document.documentElement.dataset.charts = "drawn";
    performance.mark("charts drawn");
    const all = async (change) => { for (const chart of charts.filter((one) => one.view)) await change(chart); };
    document.addEventListener("theme", () => all(draw));
    let waiting;
    addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { if (charts.some((one) => one.view && one.room !== one.place.clientWidth)) all(fit); }, 150);
    });
  };
  start();
}
