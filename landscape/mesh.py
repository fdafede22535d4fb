"""Export surfaces as meshes for ParaView, Blender and 3-D printing, through pyvista."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from landscape.arguments import expect, real_number
from landscape.storage import replacing
from landscape.surface import Surface

Array = np.ndarray

_SUFFIXES = {2: (".vtp", ".stl", ".obj", ".ply"), 3: (".vti", ".vtr")}
_HIDDEN_CELL = 32  # vtkDataSetAttributes::HIDDENCELL


def export_mesh(
    surface: Surface,
    path: str | os.PathLike,
    metric: str = "loss",
    scale: Literal["linear", "log"] = "linear",
    height: float | None = None,
    ceiling: float | None = None,
) -> None:
    """Write a plane as a mesh, or a volume as a grid; the suffix of `path` says in which format.

    A plane (`.vtp`, `.stl`, `.obj`, `.ply`) becomes an open sheet of two triangles per grid cell, seen from above
    counterclockwise, with a vertex `(x, y, z)` at every grid point:

        z = s(min(value, ceiling)),   s the identity or log10;
        with `height`: (z - min z) / (max z - min z) * height * (length of the longer axis).

    A `.vtp` file also has the unchanged values as point array `zvalue`. `.stl` and `.ply` hold single precision. To
    print a sheet, give it a thickness first. A volume (`.vti` for evenly spaced axes, `.vtr` for any) has the values as
    point array, named like the metric.

    Cells with a corner that is not finite or not computed are left out. In a volume they are marked as hidden and their
    values are NaN; filters that ignore the mark, such as isosurfaces, need a Threshold on all corners before them.

    Args:
        surface: Two or three axes, each of two points or more.
        path: The file to write.
        metric: A key of `surface.values`.
        scale: `"linear"` or `"log"` (base 10). Planes only.
        height: Height of the mesh as a fraction of the longer axis. Default: z is the value. Planes only.
        ceiling: Flatten the mesh above this value, in units of the metric. Planes only.

    Raises:
        ValueError: The suffix does not suit the surface, no cell is left, `scale="log"` meets a value that is not
            positive, or an argument makes no sense.
        ImportError: pyvista is not installed.

    Example:
        >>> export_mesh(surface, "surface.stl", scale="log", height=0.5)  # doctest: +SKIP
    """
    path = Path(path)
    expect("surface", surface, Surface, "a Surface (Surface.load reads its file)")
    suffix = path.suffix.lower()
    n_axes = len(surface.axes)
    if suffix not in _SUFFIXES.get(n_axes, ()):
        raise ValueError(
            f"cannot export a surface with {n_axes} axes as {suffix or 'a file without suffix'!r}: "
            f"planes go to {', '.join(_SUFFIXES[2])}, volumes to {', '.join(_SUFFIXES[3])}"
        )
    if min(surface.shape) < 2:
        raise ValueError(f"a mesh needs two points or more along each axis, the surface has shape {surface.shape}")
    if scale not in ("linear", "log"):
        raise ValueError(f"scale is {scale!r}, expected 'linear' or 'log'")
    if height is not None:
        height = real_number("height", height, above=0)
    if n_axes == 3 and (scale, height, ceiling) != ("linear", None, None):
        raise ValueError("scale, height and ceiling shape the sheet of a plane; a volume keeps its values")
    values = surface.metric(metric)
    lowest = np.min(values, where=np.isfinite(values), initial=np.inf)
    if ceiling is not None and not real_number("ceiling", ceiling) > lowest:
        raise ValueError(f"ceiling must lie above the lowest {metric}, {lowest:.4g}; got {ceiling:g}")
    axes = list(surface.axes.values())
    corners = np.lib.stride_tricks.sliding_window_view(np.isfinite(values), (2,) * n_axes)
    whole = np.asarray(corners.all(axis=tuple(range(n_axes, 2 * n_axes))))
    if not whole.any():
        raise ValueError(f"no grid cell has a finite, computed {metric} at all its corners: nothing to export")
    if n_axes == 2:
        points, triangles, zvalue = _sheet(axes, values, whole, scale, height, ceiling)
        mesh = _pyvista().PolyData.from_regular_faces(points, triangles)
        mesh.point_data["zvalue"] = zvalue
    else:
        mesh = _image(axes) if suffix == ".vti" else _pyvista().RectilinearGrid(*axes)
        mesh.point_data[metric] = values.ravel(order="F")
        if not whole.all():
            hidden = np.where(whole, 0, _HIDDEN_CELL).astype(np.uint8)
            mesh.cell_data["vtkGhostType"] = hidden.ravel(order="F")
    with replacing(path) as temporary:
        named = temporary.with_suffix(suffix)  # pyvista chooses the writer by the suffix
        try:
            try:
                with _quiet():
                    mesh.save(named)
                named.stat()  # on a full disk VTK removes what it wrote, and says that it failed, or nothing
            except Exception:
                with temporary.open("wb") as file:  # is there room? If not, this says so
                    file.write(bytes(2 * 1024 * mesh.actual_memory_size))
                raise
            os.replace(named, temporary)
        finally:
            named.unlink(missing_ok=True)


def _sheet(
    axes: list[Array], values: Array, whole: Array, scale: str, height: float | None, ceiling: float | None
) -> tuple[Array, Array, Array]:
    """Return points `[n, 3]`, triangles `[m, 3]` and values `[n]` of the cells that are `whole`."""
    index = np.arange(values.size).reshape(values.shape)
    a, b = index[:-1, :-1][whole], index[1:, :-1][whole]
    d, c = index[:-1, 1:][whole], index[1:, 1:][whole]
    triangles = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    used, triangles = np.unique(triangles, return_inverse=True)
    x, y = (grid.ravel()[used] for grid in np.meshgrid(*axes, indexing="ij"))
    zvalue = values.ravel()[used]
    z = zvalue if ceiling is None else np.minimum(zvalue, ceiling)
    if scale == "log":
        if z.min() <= 0:
            raise ValueError(f"scale='log' needs positive values, the lowest is {z.min():g}: use scale='linear'")
        z = np.log10(z)
    if height is not None:
        extent = np.ptp(z)
        side = max(np.ptp(axis) for axis in axes)
        z = (z - z.min()) / (extent if extent > 0 else 1.0) * height * side
    return np.stack([x, y, z], axis=1), triangles.reshape(-1, 3), zvalue


def _image(axes: list[Array]) -> Any:
    for axis in axes:
        even = np.linspace(axis[0], axis[-1], len(axis))
        if np.abs(axis - even).max() > 1e-9 * np.ptp(axis):
            raise ValueError(".vti needs evenly spaced axes; use .vtr for these")
    return _pyvista().ImageData(
        dimensions=[len(axis) for axis in axes],
        spacing=[np.ptp(axis) / (len(axis) - 1) for axis in axes],
        origin=[axis[0] for axis in axes],
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep VTK from writing its own errors to the terminal: what went wrong is said by an exception."""
    from vtkmodules.vtkCommonCore import vtkObject

    before = vtkObject.GetGlobalWarningDisplay()
    vtkObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        vtkObject.SetGlobalWarningDisplay(before)


def _pyvista() -> ModuleType:
    try:
        import pyvista
    except ImportError as error:
        raise ImportError('meshes are written by pyvista: pip install "landscape[export]"') from error
    return pyvista
