"use strict";
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const examples = [...document.querySelectorAll("#example-list > details")];
  const texts = examples.map((example) => example.textContent.toLowerCase());
  const none = document.getElementById("none");
  const chosen = (name) => form.elements[name].value;
  const filter = () => {
    const wanted = chosen("text").trim().toLowerCase();
    let shown = 0;
    examples.forEach((example, place) => {
      const fits =
        texts[place].includes(wanted) &&
        ["benchmark", "part", "change"].every((name) => !chosen(name) || example.dataset[name] === chosen(name));
      example.hidden = !fits;
      shown += fits;
    });
    form.elements.count.value = `${shown} of ${examples.length} shown`;
    none.hidden = shown > 0;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
})();
