"""CSS of the comparison page, in addition to that of the report: a colour per run, and whiskers."""

# Okabe and Ito's colours as in the report; the baseline is grey, and the sixth run's curve is dashed.
STYLE = """
:root {
  --run0: #6d737e; --run1: #0072b2; --run2: #b85000; --run3: #00795a; --run4: #a3417a; --run5: #1b1d21;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --run0: #9aa1ad; --run1: #56b4e9; --run2: #f0903c; --run3: #35c49a; --run4: #e08fbc; --run5: #e7e9ed;
  }
}
.run0 { stroke: var(--run0); color: var(--run0); }
.run1 { stroke: var(--run1); color: var(--run1); }
.run2 { stroke: var(--run2); color: var(--run2); }
.run3 { stroke: var(--run3); color: var(--run3); }
.run4 { stroke: var(--run4); color: var(--run4); }
.run5 { stroke: var(--run5); color: var(--run5); }
path:is(.run0, .run1, .run2, .run3, .run4, .run5) { stroke-width: 1.75; }
path.run5:not(.dots, .whisker path) { stroke-dasharray: 6 5; }
path.dots:is(.run0, .run1, .run2, .run3, .run4, .run5) { stroke-width: 7; }
.plot.named { margin-right: 9.5rem; }
.end { max-width: 8.5rem; }
.end b { overflow: hidden; text-overflow: ellipsis; }
figure + figure { margin-top: 3rem; }
.block + .block, .block + details { margin-top: 2rem; }
.block h3 { margin-top: 1.6rem; margin-bottom: .3rem; }
th b { font-weight: 600; }
.name { overflow-wrap: anywhere; }
th.name { white-space: normal; min-width: 4.2rem; }
.problem { width: 60%; }
.over td { border-bottom: 0; padding-bottom: .1rem; }
.opened { padding-top: 0; }
.opened details { margin-top: 0; }
.opened .tokens { margin-bottom: 0; }
.opened .pair { margin: .7rem 0 .5rem; }
td:first-child > .name { display: inline-block; min-width: 5rem; }
figure + .note { margin-top: 2.6rem; }
.scrolled { overflow-x: auto; }

.whiskers td { vertical-align: middle; }
.whiskers td:first-child { width: 11rem; }
.whiskers td:last-child { width: 8.5rem; }
.whiskers .chart { padding-top: 0; padding-bottom: 0; }
.plot.whisker { height: 3.4rem; margin: 0 .6rem; }
.plot.whisker .zero { stroke: var(--ink); stroke-width: 1; stroke-linecap: butt; }
.plot.whisker path:is(.run0, .run1, .run2, .run3, .run4, .run5):not(.dots) { stroke-width: 2.5; }
.plot.whisker path.dots { stroke-width: 10; }
.plot.axis { height: 1.2rem; margin: 0 .6rem; }
.plot.axis .x { top: .4rem; }
.axes td { border-bottom: 0; }

@media (max-width: 40rem) {
  .plot.named { margin-right: 6rem; }
  .end { max-width: 5.4rem; }
  .whiskers td:first-child { width: 6.2rem; }
  .whiskers td:last-child { width: 5rem; }
  .whiskers td { padding-right: .4rem; }
  .whiskers .right { white-space: normal; }
  .problem { width: 44%; }
}
"""
