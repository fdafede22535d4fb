"""What the tests of pages ask a browser."""


def drawn_figures(tab):
    """Go to each figure of a page in turn, wait until it is drawn, and yield the name of its element."""
    for plot in tab.evaluate("[...document.querySelectorAll('.plotly-graph-div')].map(plot => plot.id)"):
        tab.evaluate("id => document.getElementById(id).scrollIntoView({block: 'center'})", plot)
        tab.wait_for_function("id => document.querySelector(`#${id} .main-svg`) !== null", arg=plot)
        yield plot


def colors(tab, plot):
    """How many colors the image of a figure has: a scene that was not drawn has few."""
    return tab.evaluate(
        """async (id) => {
          const image = new Image();
          image.src = await Plotly.toImage(id, {format: "png", width: 300, height: 300});
          await image.decode();
          const canvas = document.createElement("canvas");
          canvas.width = canvas.height = 300;
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          return new Set(new Uint32Array(context.getImageData(0, 0, 300, 300).data.buffer)).size;
        }""",
        plot,
    )
