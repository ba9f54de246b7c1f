"""Render the example dataset: eight captioned pictures of one toy robot, TOKBOT.

A small ray marcher draws everything; each run gives the same pictures (needs numpy and Pillow).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[Any]
Point = tuple[float, float, float]

SAMPLES = 2  # per pixel and axis
TILE = 1 << 16  # rays marched together
FAR = 60.0
JPEG_QUALITY = 91


# Vectors: a bundle of N points or colours is an array of shape (3, N).


def vec(x: float, y: float, z: float) -> Array:
    return np.array([[x], [y], [z]], np.float32)


def rgb(code: str) -> Array:
    """Turn "#rrggbb" into a linear colour."""
    red, green, blue = (int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return vec(red**2.2, green**2.2, blue**2.2)


def dot(a: Array, b: Array) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def length(p: Array) -> Array:
    return np.sqrt(dot(p, p))


def unit(p: Array) -> Array:
    return p / np.maximum(length(p), 1e-9)


def cross(a: Array, b: Array) -> Array:
    return np.cross(a, b, axis=0).astype(np.float32)


def mix(a: Array, b: Array | float, t: Array | float) -> Array:
    return a + (b - a) * t


def smoothstep(low: float, high: float, x: Array) -> Array:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def spin(p: Array, axis: int, degrees: float) -> Array:
    """Rotate points about one coordinate axis."""
    if not degrees:
        return p
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = p.copy()
    out[i] = c * p[i] - s * p[j]
    out[j] = s * p[i] + c * p[j]
    return out


def mirror(p: Array) -> Array:
    return np.stack([np.abs(p[0]), p[1], p[2]])


# Noise


TABLE = np.random.default_rng(7).random((256, 256), dtype=np.float32)


def pick(i: Array, j: Array, salt: int = 0) -> Array:
    """Look up a fixed random number in 0..1 for each pair of whole numbers."""
    return TABLE[(i.astype(np.int32) + 37 * salt) & 255, (j.astype(np.int32) + 91 * salt) & 255]


def noise(u: Array, v: Array) -> Array:
    i, j = np.floor(u), np.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    near = pick(i, j) * (1 - a) + pick(i + 1, j) * a
    far = pick(i, j + 1) * (1 - a) + pick(i + 1, j + 1) * a
    return near * (1 - b) + far * b


def fbm(u: Array, v: Array, octaves: int = 4) -> Array:
    total = np.zeros_like(u)
    for k in range(octaves):
        total += noise(u * 2.03**k + 17 * k, v * 2.03**k + 5 * k) * 0.5 ** (k + 1)
    return total


# Shapes: the signed distance of each point to a surface.


def sphere(p: Array, radius: float) -> Array:
    return length(p) - radius


def ellipsoid(p: Array, radii: Point) -> Array:
    r = vec(*radii)
    inner = length(p / r)
    return inner * (inner - 1) / np.maximum(length(p / (r * r)), 1e-6)


def box(p: Array, half: Point, rounding: float) -> Array:
    q = np.abs(p) - (vec(*half) - rounding)
    return length(np.maximum(q, 0)) + np.minimum(q.max(axis=0), 0) - rounding


def capsule(p: Array, a: Point, b: Point, radius: float) -> Array:
    start, line = vec(*a), vec(*b) - vec(*a)
    along = np.clip(dot(p - start, line) / dot(line, line), 0, 1)
    return length(p - start - line * along) - radius


def disc(p: Array, radius: float, half: float, rounding: float, axis: int = 1) -> Array:
    """Make a cylinder with rounded rims along an axis."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    across = np.hypot(p[i], p[j]) - radius + rounding
    along = np.abs(p[axis]) - half + rounding
    outside = np.hypot(np.maximum(across, 0), np.maximum(along, 0))
    return outside + np.minimum(np.maximum(across, along), 0) - rounding


def ring(p: Array, radius: float, thickness: float, axis: int = 1) -> Array:
    i, j = (axis + 1) % 3, (axis + 2) % 3
    return np.hypot(np.hypot(p[i], p[j]) - radius, p[axis]) - thickness


def cone(p: Array, low: float, high: float, height: float) -> Array:
    """Stand a cone on y = 0, with its radius at the bottom and at the top."""
    slope = (low - high) / height
    side = np.hypot(p[0], p[2]) - (low - slope * p[1])
    return np.maximum(side / math.hypot(1, slope), np.abs(p[1] - height / 2) - height / 2)


def blend(a: Array, b: Array, k: float) -> Array:
    """Smooth union."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * k / 4


# Surfaces and things


@dataclass
class Surface:
    """How a bundle of points looks: colour, mirror strength, highlight size, light of its own."""

    albedo: Array
    mirror: Any = 0.04  # one number, or one for each point
    shine: float = 60.0
    glow: Any = 0.0


Distance = Callable[[Array], Array]
Paint = Callable[[Array, Array], Surface]


@dataclass(frozen=True)
class Thing:
    """A shape with its paint; a radius bounds it to a sphere about its centre."""

    distance: Distance
    paint: Paint
    centre: Point = (0, 0, 0)
    radius: float = 0.0


def plain(colour: Array, mirror: float = 0.04, shine: float = 60.0, glow: float = 0.0) -> Paint:
    def paint(p: Array, _: Array) -> Surface:
        return Surface(np.repeat(colour, p.shape[1], axis=1), mirror, shine, colour * glow)

    return paint


def place(shape: Distance, paint: Paint, at: Point, radius: float, turn: float = 0) -> Thing:
    """Put a shape, modelled around the origin, somewhere in the world."""

    def local(p: Array) -> Array:
        return spin(p - vec(*at), 1, -turn)

    return Thing(lambda p: shape(local(p)), lambda p, n: paint(local(p), n), at, radius)


def ground(height: Callable[[Array, Array], Array], top: float, paint: Paint) -> Thing:
    """Terrain given by a height below `top` for each x and z."""

    def distance(p: Array) -> Array:
        d = p[1] - top + 0.02
        near = np.flatnonzero(d < 0.6)
        if near.size:
            q = p[:, near]
            d[near] = (q[1] - height(q[0], q[2])) * 0.75
        return d

    return Thing(distance, paint)


def flat(paint: Paint) -> Thing:
    return Thing(lambda p: p[1].copy(), paint)


def nearest(things: Sequence[Thing], p: Array, reach: Array | float = 0.1) -> Array:
    """Distance to the scene, exact wherever it is below reach."""
    best = np.full(p.shape[1], FAR, np.float32)
    for thing in things:
        if not thing.radius:
            np.minimum(best, thing.distance(p), out=best)
            continue
        bound = length(p - vec(*thing.centre)) - thing.radius
        near = np.flatnonzero((bound < reach) & (bound < best))
        if near.size:
            bound[near] = thing.distance(p[:, near])
        np.minimum(best, bound, out=best)
    return best


# The robot


SHELL, CREAM, CORAL, GOLD = rgb("#12aeb0"), rgb("#fbf0da"), rgb("#fb5a45"), rgb("#f7b733")
SCREEN, EYE, BLUSH = rgb("#10162c"), rgb("#8ff6ff"), rgb("#ff6f7f")
NECK = vec(0, 1.1, 0)
HEAD = vec(0, 0.52, 0)


@dataclass(frozen=True)
class Pose:
    """Where the robot stands, where it looks and how it holds its arms, in degrees."""

    at: Point = (0, 0, 0)
    turn: float = 0
    head_turn: float = 0
    nod: float = 0
    tilt: float = 0
    left: tuple[float, float] = (-55, 15)  # raised, forward
    right: tuple[float, float] = (-55, 15)


def hand(side: int, arm: tuple[float, float]) -> Point:
    up, forward = math.radians(arm[0]), math.radians(arm[1])
    reach = 0.5
    return (
        side * (0.36 + reach * math.cos(up) * math.cos(forward)),
        0.9 + reach * math.sin(up),
        reach * math.cos(up) * math.sin(forward),
    )


def to_body(p: Array, pose: Pose) -> Array:
    return spin(p - vec(*pose.at), 1, -pose.turn)


def to_head(body: Array, pose: Pose) -> Array:
    q = spin(body - NECK, 1, -pose.head_turn)
    return spin(spin(q, 0, -pose.nod), 2, -pose.tilt) - HEAD


def screen_mask(h: Array) -> Array:
    """Above zero inside the face screen."""
    inside = 1 - (h[0] / 0.53) ** 4 - ((h[1] + 0.01) / 0.345) ** 4
    return np.where(h[2] > 0.2, inside, -1)


def robot_parts(p: Array, pose: Pose) -> Array:
    """Distances to the head, shell, cream, coral and gold parts, shape (5, N)."""
    b = to_body(p, pose)
    h = to_head(b, pose)
    bm, hm = mirror(b), mirror(h)
    head = box(h, (0.68, 0.49, 0.56), 0.38) + 0.022 * smoothstep(-0.05, 0.08, screen_mask(h))
    shell = blend(sphere(b - vec(0, 0.56, 0), 0.46), sphere(b - vec(0, 0.86, 0), 0.34), 0.25)
    shell = blend(shell, capsule(bm, (0.22, 0.35, 0), (0.22, 0.14, 0.02), 0.13), 0.08)
    cream = ring(b - vec(0, 1.11, 0), 0.2, 0.075)
    for side, arm in ((1, pose.left), (-1, pose.right)):
        tip = hand(side, arm)
        shell = blend(shell, capsule(b, (side * 0.3, 0.9, 0), tip, 0.095), 0.06)
        cream = np.minimum(cream, sphere(b - vec(*tip), 0.155))
    cream = np.minimum(cream, disc(hm - vec(0.68, 0, 0), 0.12, 0.13, 0.03, axis=0))
    cream = np.minimum(cream, capsule(h, (0, 0.45, 0), (0, 0.8, 0), 0.028))
    coral = disc(hm - vec(0.67, 0, 0), 0.23, 0.085, 0.05, axis=0)
    coral = np.minimum(coral, sphere(h - vec(0, 0.82, 0), 0.115))
    coral = np.minimum(coral, ellipsoid(h - vec(0, 0.49, 0), (0.13, 0.06, 0.13)))
    coral = np.minimum(coral, ellipsoid(b - vec(0, 0.68, 0.44), (0.085, 0.085, 0.05)))
    foot = ellipsoid(bm - vec(0.24, 0.1, 0.08), (0.2, 0.16, 0.28))
    coral = np.minimum(coral, np.maximum(foot, -b[1]))
    gold = capsule(b, (0, 0.78, -0.35), (0, 0.78, -0.62), 0.04)
    gold = np.minimum(gold, ring(bm - vec(0.135, 0.78, -0.64), 0.105, 0.038, axis=2))
    return np.stack([head * 0.95, shell, cream, coral, gold])


def oval(h: Array, x: float, y: float, a: float, b: float) -> Array:
    """Coverage, 0..1, of an oval painted on the front of the head."""
    r = np.hypot((np.abs(h[0]) - x) / a, (h[1] - y) / b)
    return 1 - smoothstep(0.93, 1.0, r)


def paint_face(h: Array, surface: Surface) -> None:
    mask = screen_mask(h)
    screen = smoothstep(-0.02, 0.02, mask)
    rim = smoothstep(-0.22, -0.18, mask) * (1 - screen) * (h[2] > 0.2)
    eyes = oval(h, 0.225, 0.035, 0.088, 0.128)
    arc = np.abs(np.hypot(h[0], h[1] + 0.05) - 0.115)
    smile = (1 - smoothstep(0.017, 0.024, arc)) * smoothstep(0.045, 0.06, -0.05 - h[1])
    light = np.maximum(eyes, smile) * screen
    cheeks = oval(h, 0.36, -0.135, 0.062, 0.04) * screen
    albedo = mix(mix(surface.albedo, CREAM, rim), SCREEN, screen)
    surface.albedo[:] = mix(albedo, vec(0, 0, 0), light)
    surface.mirror = np.float32(0.05) - 0.032 * screen
    surface.glow = EYE * (1.25 * light) + BLUSH * (0.42 * cheeks)


def robot(pose: Pose) -> Thing:
    colours = np.concatenate([SHELL, SHELL, CREAM, CORAL, GOLD], axis=1)

    def paint(p: Array, _: Array) -> Surface:
        part = robot_parts(p, pose).argmin(axis=0)
        body = to_body(p, pose)
        surface = Surface(colours[:, part], np.full(p.shape[1], 0.05, np.float32), 220)
        surface.mirror[part == 4] = 0.35
        belly = 1 - smoothstep(0.96, 1.0, np.hypot(body[0] / 0.29, (body[1] - 0.62) / 0.3))
        belly *= (part == 1) & (body[2] > 0.15)
        surface.albedo = mix(surface.albedo, CREAM, belly)
        face = part == 0
        painted = Surface(surface.albedo[:, face])
        paint_face(to_head(body[:, face], pose), painted)
        surface.albedo[:, face], surface.mirror[face] = painted.albedo, painted.mirror
        surface.glow = np.zeros_like(surface.albedo)
        surface.glow[:, face] = painted.glow
        return surface

    x, y, z = pose.at
    return Thing(lambda p: robot_parts(p, pose).min(axis=0), paint, (x, y + 1.22, z), 1.5)


# Light


@dataclass(frozen=True)
class Light:
    """A sun, given by its direction, or with a range, a lamp at a position."""

    at: Point
    colour: Array
    sharpness: float = 10.0
    range: float = 0.0

    def aim(self, p: Array) -> tuple[Array, Array, Array]:
        """Direction to the light, distance to it and its strength there."""
        if not self.range:
            toward = np.broadcast_to(unit(vec(*self.at)), p.shape)
            return toward, np.full(p.shape[1], 12, np.float32), np.ones(p.shape[1], np.float32)
        offset = vec(*self.at) - p
        gap = length(offset)
        return offset / gap, gap, 1 / (1 + (gap / self.range) ** 2)


@dataclass(frozen=True)
class Softbox:
    """A studio light panel or window that shows only in reflections."""

    toward: Point
    half: tuple[float, float]
    strength: float

    def __call__(self, rd: Array) -> Array:
        axis = unit(vec(*self.toward))
        right = unit(cross(vec(0, 1, 0.001), axis))
        ahead = np.maximum(dot(rd, axis), 1e-3)
        u = np.abs(dot(rd, right) / ahead) / self.half[0]
        v = np.abs(dot(rd, cross(axis, right)) / ahead) / self.half[1]
        return (1 - smoothstep(0.85, 1.0, (u**6 + v**6) ** (1 / 6))) * self.strength


Sky = Callable[[Array], Array]
Overlay = Callable[[Array, Array], Array]


def keep(image: Array, _: Array) -> Array:
    return image


@dataclass(frozen=True)
class Picture:
    """One scene with its camera, light, finish and caption."""

    caption: str
    size: tuple[int, int]
    eye: Point
    target: Point
    view: float  # vertical angle, degrees
    things: Sequence[Thing]
    sky: Sky
    lights: Sequence[Light]
    above: Array  # ambient light from the sky
    below: Array  # and from the ground
    softboxes: Sequence[Softbox] = ()
    fog: float = 0.0
    focus: float = 0.0  # depth where the background starts to blur; 0: none
    blur: float = 0.006  # of the height
    exposure: float = 1.0
    overlay: Overlay = field(default=keep)


def march(things: Sequence[Thing], ro: Array, rd: Array, steps: int = 140) -> Array:
    """Distance along each ray to the first surface, FAR where there is none."""
    t = np.full(rd.shape[1], 0.02, np.float32)
    active = np.arange(rd.shape[1])
    for _ in range(steps):
        gap = nearest(things, ro[:, active] + rd[:, active] * t[active])
        t[active] += gap
        active = active[(gap > 0.0001 * t[active]) & (t[active] < FAR)]
        if not active.size:
            break
    return np.minimum(t, FAR)


def normals(things: Sequence[Thing], p: Array, t: Array) -> Array:
    total = np.zeros_like(p)
    step = 0.0004 * t + 0.0004
    for k in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        total += vec(*k) * nearest(things, p + vec(*k) * step)
    return unit(total)


def occlusion(things: Sequence[Thing], p: Array, n: Array) -> Array:
    """Ambient light that reaches each point, 0..1."""
    blocked = np.zeros(p.shape[1], np.float32)
    for h, weight in ((0.05, 1.4), (0.11, 0.9), (0.22, 0.55), (0.42, 0.3)):
        blocked += np.maximum(h - nearest(things, p + n * h, 0.45), 0) * weight / h * 0.42
    return np.clip(1 - blocked, 0.06, 1)


def shadow(things: Sequence[Thing], p: Array, toward: Array, gap: Array, sharpness: float) -> Array:
    """Direct light that reaches each point, 0..1, with soft edges."""
    light = np.ones(p.shape[1], np.float32)
    t = np.full(p.shape[1], 0.03, np.float32)
    active = np.arange(p.shape[1])
    for _ in range(48):
        ta = t[active]
        d = nearest(things, p[:, active] + toward[:, active] * ta, np.maximum(0.1, ta / sharpness))
        light[active] = np.minimum(light[active], sharpness * d / ta)
        t[active] = ta + np.clip(d, 0.015, 0.6)
        active = active[(light[active] > 0.005) & (t[active] < gap[active])]
        if not active.size:
            break
    light = np.clip(light, 0, 1)
    return light * light * (3 - 2 * light)


def surfaces(things: Sequence[Thing], p: Array, n: Array) -> tuple[Surface, Array]:
    """Paint each point as the thing it lies on; also the highlight sizes."""
    owners = np.stack([nearest([thing], p) for thing in things]).argmin(axis=0)
    out = Surface(np.zeros_like(p), np.zeros(p.shape[1], np.float32), glow=np.zeros_like(p))
    shine = np.ones(p.shape[1], np.float32)
    for k, thing in enumerate(things):
        mine = np.flatnonzero(owners == k)
        if mine.size:
            look = thing.paint(p[:, mine], n[:, mine])
            out.albedo[:, mine], out.mirror[mine] = look.albedo, look.mirror
            out.glow[:, mine], shine[mine] = look.glow, look.shine
    return out, shine


def environment(picture: Picture, rd: Array) -> Array:
    return picture.sky(rd) + sum(panel(rd) for panel in picture.softboxes)


def lit(picture: Picture, p: Array, rd: Array, t: Array, bounce: bool) -> Array:
    """Colour of the surface points that rays hit."""
    n = normals(picture.things, p, t)
    look, shine = surfaces(picture.things, p, n)
    p = p + n * 0.004
    ambient = occlusion(picture.things, p, n)
    colour = look.albedo * mix(picture.below, picture.above, 0.5 + 0.5 * n[1]) * ambient
    fresnel = look.mirror + (1 - look.mirror) * (1 - np.clip(-dot(n, rd), 0, 1)) ** 5 * np.clip(
        look.mirror * 14, 0, 0.8
    )
    for light in picture.lights:
        toward, gap, strength = light.aim(p)
        strength = strength * np.clip(dot(n, toward), 0, 1)
        day = np.flatnonzero(strength > 0.002)
        strength[day] *= shadow(picture.things, p[:, day], toward[:, day], gap[day], light.sharpness)
        gleam = np.clip(dot(n, unit(toward - rd)), 0, 1) ** shine * (shine * 0.08) * look.mirror
        colour = colour + light.colour * strength * (look.albedo + gleam)
    mirrored = rd - 2 * dot(rd, n) * n
    seen = environment(picture, mirrored) * np.sqrt(ambient)
    if bounce:
        deep = np.flatnonzero(look.mirror > 0.015)
        seen[:, deep] = trace(picture, p[:, deep], mirrored[:, deep], bounce=False)[0]
    return colour + seen * fresnel + look.glow


def trace(picture: Picture, ro: Array, rd: Array, bounce: bool = True) -> tuple[Array, Array]:
    """Colour and depth along each ray."""
    t = march(picture.things, ro, rd, 140 if bounce else 60)
    background = picture.sky(rd) if bounce else environment(picture, rd)
    hit = np.flatnonzero(t < FAR)
    if hit.size:
        p = ro[:, hit] + rd[:, hit] * t[hit]
        colour = lit(picture, p, rd[:, hit], t[hit], bounce)
        haze = 1 - np.exp(-picture.fog * np.maximum(t[hit] - math.dist(picture.eye, picture.target), 0))
        background[:, hit] = mix(colour, background[:, hit], haze)
    return background, t


def camera(picture: Picture) -> tuple[Array, Array]:
    """Rays through the samples of all pixels, in reading order."""
    width, height = (side * SAMPLES for side in picture.size)
    ahead = unit(vec(*picture.target) - vec(*picture.eye))
    right = unit(cross(ahead, vec(0, 1, 0)))
    up = cross(right, ahead)
    scale = math.tan(math.radians(picture.view / 2)) * 2 / height
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) * np.float32(scale)
    y = (height / 2 - np.arange(height, dtype=np.float32) - 0.5) * np.float32(scale)
    u, v = np.tile(x, height), np.repeat(y, width)
    return vec(*picture.eye), unit(ahead + right * u + up * v)


def shoot(picture: Picture) -> tuple[Array, Array]:
    """Give the linear image, (height, width, 3), and its depth."""
    ro, rd = camera(picture)
    colour, depth = np.empty_like(rd), np.empty(rd.shape[1], np.float32)
    for start in range(0, rd.shape[1], TILE):
        part = slice(start, start + TILE)
        rays = np.ascontiguousarray(rd[:, part])
        colour[:, part], depth[part] = trace(picture, np.repeat(ro, rays.shape[1], axis=1), rays)
    width, height = picture.size
    cells = (height, SAMPLES, width, SAMPLES)
    pixels = np.minimum(colour, 6).reshape(3, *cells).mean(axis=(2, 4))
    return pixels.transpose(1, 2, 0), depth.reshape(cells).min(axis=(1, 3))


# Finish


def gaussian(image: Array, sigma: float) -> Array:
    """Blur the first two axes."""
    pad = int(3 * sigma) + 1
    edges = [(pad, pad), (pad, pad)] + [(0, 0)] * (image.ndim - 2)
    wide = np.pad(image, edges, mode="edge")
    fy = np.fft.fftfreq(wide.shape[0])[:, None]
    fx = np.fft.rfftfreq(wide.shape[1])[None, :]
    damp = np.exp(-2 * (math.pi * sigma) ** 2 * (fx**2 + fy**2))
    damp = damp.reshape(damp.shape + (1,) * (image.ndim - 2))
    soft = np.fft.irfft2(np.fft.rfft2(wide, axes=(0, 1)) * damp, s=wide.shape[:2], axes=(0, 1))
    return soft[pad:-pad, pad:-pad].astype(np.float32)


def defocus(image: Array, depth: Array, focus: float, sigma: float) -> Array:
    """Blur what lies behind the focus, more with depth, without smearing what is in front."""
    for reach, part in ((1.0, 0.35), (1.35, 0.7), (2.0, 1.0)):
        behind = (depth > focus * reach).astype(np.float32)
        cover = gaussian(behind, sigma * part)
        soft = gaussian(image * behind[..., None], sigma * part)
        soft /= np.maximum(cover, 1e-3)[..., None]
        share = smoothstep(focus * reach, focus * reach * 1.3, depth)[..., None]
        image = mix(image, soft, share)
    return image


def develop(image: Array, exposure: float) -> Image.Image:
    """Bloom, film curve, a light vignette and 8 bits."""
    height, width, _ = image.shape
    bright = np.clip(image - 0.85, 0, 3)
    image = image + 0.16 * gaussian(bright, height * 0.006) + 0.1 * gaussian(bright, height * 0.03)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    image = image * (exposure * (1 - 0.1 * (x * x + y * y)))[..., None]
    film = image * (2.51 * image + 0.03) / (image * (2.43 * image + 0.59) + 0.14)
    return Image.fromarray(np.uint8(np.clip(film, 0, 1) ** (1 / 2.2) * 255 + 0.5))


def render(picture: Picture) -> Image.Image:
    image, depth = shoot(picture)
    if picture.focus:
        image = defocus(image, depth, picture.focus, picture.blur * picture.size[1])
    return develop(picture.overlay(image, depth), picture.exposure)


def sprites(size: tuple[int, int], draw: Callable[[ImageDraw.ImageDraw], None]) -> Array:
    """Give what draw puts on a black sheet, as coverage of shape (height, width, 1)."""
    sheet = Image.new("L", (size[0] * 2, size[1] * 2))
    draw(ImageDraw.Draw(sheet))
    return np.asarray(sheet.resize(size, Image.Resampling.BOX), np.float32)[..., None] / 255


def snowfall(count: int, seed: int, streak: float = 0.0) -> Overlay:
    """Flakes, near ones large and soft; with a streak, raindrops instead."""

    def overlay(image: Array, _: Array) -> Array:
        height, width, _ = image.shape
        for layer, (share, radius) in enumerate(((0.7, 0.0016), (0.25, 0.0032), (0.05, 0.008))):
            rng = np.random.default_rng(seed + layer)
            dots = rng.random((int(count * share), 3)) * (width * 2, height * 2, 1)
            r = radius * height * 2

            def draw(pen: ImageDraw.ImageDraw, dots: Array = dots, r: float = r, layer: int = layer) -> None:
                for x, y, tone in dots:
                    if streak:
                        drop = streak * height * (1 + layer) * (0.6 + tone)
                        end = (x - drop * 0.12, y + drop)
                        pen.line((x, y, *end), fill=int(70 + 90 * tone), width=max(1, int(r)))
                    else:
                        s = r * (0.6 + 0.8 * tone)
                        pen.ellipse((x - s, y - s, x + s, y + s), fill=int(120 + 110 * tone))

            cover = gaussian(sprites((width, height), draw), 0.4 + r * 0.2)
            image = image + cover * (0.28 if streak else 1.0) * (vec(0.8, 0.9, 1).T - image * 0.6)
        return image

    return overlay


# Scenes


def gradient(low: Array, high: Array, bend: float = 1.0) -> Sky:
    return lambda rd: mix(low, high, np.clip(rd[1], 0, 1) ** bend)


def wood(light: Array, dark: Array, plank: float) -> Paint:
    """Varnished planks along the x axis."""

    def paint(p: Array, _: Array) -> Surface:
        row = np.floor(p[2] / plank)
        x = p[0] + 7.3 * pick(row, row)
        warp = fbm(x * 0.5, p[2] * 2 + row * 3, 3)
        grain = fbm(x * 0.9, p[2] * 14 + warp * 7 + row * 11)
        rings = 0.5 + 0.5 * np.sin(p[2] * 16 + warp * 22)
        shade = np.clip(0.75 * grain + 0.22 * rings + 0.35 * pick(row, row, 3) - 0.1, 0, 1)
        seam = np.abs(p[2] / plank - np.round(p[2] / plank)) * plank
        board = mix(light, dark, shade) * (0.25 + 0.75 * smoothstep(0.0, 0.025, seam))
        return Surface(board, 0.013, 40)

    return paint


def book(cover: Array, half: Point, at: Point, turn: float) -> Thing:
    width, thick, deep = half

    def shape(p: Array) -> Array:
        boards = box(p, half, 0.03)
        gap = box(p - vec(0.1, 0, 0), (width + 0.06, thick - 0.045, deep + 0.1), 0.01)
        pages = box(p + vec(0.02, 0, 0), (width - 0.06, thick - 0.03, deep - 0.06), 0.01)
        return np.minimum(np.maximum(boards, -gap), pages)

    def paint(p: Array, _: Array) -> Surface:
        inside = np.abs(p[1]) < thick - 0.044
        inside &= (np.abs(p[2]) < deep - 0.055) & (p[0] > -width + 0.03)
        lines = 0.82 + 0.18 * noise(p[1] * 160, p[0] * 2 + p[2])
        return Surface(np.where(inside, CREAM * lines, cover), 0.025, 40)

    return place(shape, paint, at, float(np.linalg.norm(half)) + 0.1, turn)


def mug(colour: Array, at: Point, turn: float) -> Thing:
    def shape(p: Array) -> Array:
        wall = disc(p - vec(0, 0.45, 0), 0.4, 0.45, 0.04)
        wall = np.maximum(wall, -disc(p - vec(0, 0.6, 0), 0.34, 0.52, 0.04))
        handle = np.maximum(ring(p - vec(0.42, 0.45, 0), 0.24, 0.06, axis=2), 0.38 - p[0])
        tea = disc(p - vec(0, 0.37, 0), 0.35, 0.35, 0.01)
        return np.minimum(np.minimum(wall, handle), tea)

    def paint(p: Array, _: Array) -> Surface:
        tea = (np.hypot(p[0], p[2]) < 0.345) & (p[1] < 0.73)
        return Surface(np.where(tea, rgb("#8a4a1c"), colour), 0.05, 120)

    return place(shape, paint, at, 1.0, turn)


def pencil(colour: Array, at: Point, turn: float) -> Thing:
    def shape(p: Array) -> Array:
        shaft = capsule(p, (-0.8, 0.06, 0), (0.7, 0.06, 0), 0.06)
        tip = cone(spin(p - vec(0.72, 0.06, 0), 2, 90), 0.06, 0.004, 0.24)
        return np.minimum(shaft, tip)

    def paint(p: Array, _: Array) -> Surface:
        bare = np.where(p[0] > 0.9, rgb("#2a2a33"), rgb("#e8c08a"))
        painted = np.where(p[0] < -0.7, rgb("#ef8a95"), colour)
        return Surface(np.where(p[0] > 0.72, bare, painted), 0.04, 80)

    return place(shape, paint, at, 1.1, turn)


def on_a_desk() -> Picture:
    robo = Pose(turn=18, head_turn=8, nod=-14, tilt=-5, left=(24, 25), right=(-50, 20))
    books = [
        book(rgb("#2f4f8f"), (1.0, 0.17, 0.72), (-1.75, 0.17, -0.9), 20),
        book(rgb("#c8433c"), (0.92, 0.14, 0.66), (-1.72, 0.48, -0.92), 8),
        book(rgb("#e3b23c"), (0.8, 0.12, 0.58), (-1.8, 0.74, -0.88), 32),
    ]
    desk = [flat(wood(rgb("#d0a06c"), rgb("#8f6038"), 1.25)), mug(CREAM, (1.75, 0, -0.95), -35)]
    pencils = [pencil(GOLD, (1.3, 0, 1.0), 28), pencil(SHELL, (-1.35, 0, 1.15), -20)]
    return Picture(
        caption="photo of TOKBOT waving on a wooden desk beside a stack of books and a mug of "
        "tea, seen from above, warm lamp light",
        size=(1280, 1024),
        eye=(1.3, 4.9, 5.6),
        target=(-0.05, 0.85, -0.15),
        view=37,
        things=[robot(robo), *books, *desk, *pencils],
        sky=gradient(rgb("#5a4433"), rgb("#35281f")),
        lights=[
            Light((-3.2, 4.6, 2.0), rgb("#ffe2b8") * 4.2, 7, 4.5),
            Light((4, 3, -2), rgb("#7f9fe0") * 0.35, 5),
        ],
        above=rgb("#c4b2a4") * 0.6,
        below=rgb("#8a6244") * 0.5,
        softboxes=[Softbox((-3, 4, 2.2), (0.3, 0.3), 14)],
        focus=7.6,
        exposure=0.95,
    )


def bokeh(night: Array, glow: Array, count: int, seed: int) -> Sky:
    """Make a dark street full of blurred lamps, low in front of the camera."""
    rng = np.random.default_rng(seed)
    tints = ("#ffb45c", "#ff7a4d", "#ffd98a", "#7fb8ff", "#ffb45c", "#ff6f91", "#ffe9c4")
    lamps = [
        (rng.uniform(-0.34, 0.34), 0.03 + rng.uniform(0.0, 0.6) ** 1.6, rng.uniform(0.012, 0.038), k)
        for k in range(count)
    ]

    def sky(rd: Array) -> Array:
        out = mix(glow, night, np.clip(np.abs(rd[1]) * 2.2, 0, 1))
        ahead = np.maximum(-rd[2], 1e-3)
        u, v = rd[0] / ahead, rd[1] / ahead
        for x, y, r, k in lamps:
            near = np.hypot(u - x, v - y) / r
            cover = 1 - smoothstep(0.9, 1.0, near)
            tint = rgb(tints[k % len(tints)]) * (0.2 + 0.7 * ((k * 3) % 5) / 5)
            out = out + tint * (cover * (0.75 + 0.25 * near * near) * (rd[2] < 0))
        return out

    return sky


def umbrella(top: Point, grip: Point) -> Thing:
    rim, radius = -0.75, 1.6

    def shape(p: Array) -> Array:
        angle = np.arctan2(p[2], p[0])
        scallop = rim + 0.15 * np.abs(np.cos(4 * angle))
        shifted = p + vec(0, radius, 0)
        dome = np.maximum(np.abs(length(shifted) - radius) - 0.018, (scallop - p[1]) * 0.7)
        tip = capsule(p, (0, 0, 0), (0, 0.16, 0), 0.035)
        stick = capsule(p, (0, 0, 0), tuple(np.subtract(grip, top)), 0.03)
        return np.minimum(np.minimum(dome, tip), stick) * 0.9

    def paint(p: Array, _: Array) -> Surface:
        fabric = np.abs(length(p + vec(0, radius, 0)) - radius) < 0.03
        fabric &= np.hypot(p[0], p[2]) > 0.045
        wedge = np.sin(np.arctan2(p[2], p[0]) * 4) > 0
        panels = np.where(wedge, rgb("#f9c22e"), rgb("#fff3d6"))
        return Surface(np.where(fabric, panels, rgb("#3b3f4a")), 0.012, 60, panels * 0.06 * fabric)

    return place(shape, paint, top, 2.6)


def puddles(x: Array, z: Array) -> Array:
    return smoothstep(0.43, 0.55, fbm(x * 0.5 + 3, z * 0.5, 3))


def cobbles(x: Array, z: Array) -> tuple[Array, Array]:
    """Height of each stone, 0..1, and a random number for it."""
    u, v = x / 0.62, z / 0.36
    row = np.floor(v)
    u = u + 0.5 * (row % 2) + 0.25 * pick(row, row)
    a, b = np.abs(u - np.floor(u) - 0.5), np.abs(v - row - 0.5)
    dome = 1 - np.clip((2.02 * a) ** 6 + (2.05 * b) ** 4, 0, 1)
    return dome, pick(np.floor(u), row, 5)


def wet_street(p: Array, _: Array) -> Surface:
    water = puddles(p[0], p[2])
    stone, tone = cobbles(p[0], p[2])
    grit = (0.45 + 0.6 * tone) * (0.7 + 0.6 * fbm(p[0] * 14, p[2] * 14, 2)) * (0.25 + 0.75 * stone)
    colour = mix(rgb("#5a5f70") * grit, rgb("#0d1018"), 0.8 * water)
    return Surface(colour, 0.045 + 0.1 * water, 70)


def street_height(x: Array, z: Array) -> Array:
    stone, tone = cobbles(x, z)
    water = puddles(x, z)
    ripples = 0.008 * noise(x * 4, z * 9)
    for cx, cz in ((-1.25, 0.75), (1.1, 1.25), (-0.35, 1.6), (1.7, 0.1), (-1.8, -0.6)):
        gap = np.hypot(x - cx, z - cz)
        ripples += 0.0035 * np.sin(gap * 34) * np.exp(-gap * 5.0)
    return mix(0.05 * np.sqrt(stone) + 0.012 * tone - 0.05, ripples - 0.008, water)


def in_the_rain() -> Picture:
    robo = Pose(at=(-0.35, 0, 0), turn=-14, head_turn=-4, nod=-4, tilt=5, left=(12, 15), right=(-40, 25))
    x, y, z = hand(1, robo.left)
    held = vec(*robo.at) + spin(vec(x + 0.06, y, z), 1, robo.turn)
    grip = (float(held[0, 0]), float(held[1, 0]) - 0.3, float(held[2, 0]))
    cover = umbrella((0.36, 3.4, 0.25), grip)
    return Picture(
        caption="photo of TOKBOT holding a yellow umbrella in the rain on a wet city street at "
        "night, full body at eye level, blurred street lamps behind",
        size=(1024, 1280),
        eye=(-0.6, 1.75, 7.9),
        target=(0.1, 1.62, 0),
        view=33,
        things=[
            robot(robo),
            cover,
            ground(street_height, 0.03, wet_street),
        ],
        sky=bokeh(rgb("#080c1c"), rgb("#333a5e"), 44, 6),
        lights=[
            Light((-4.2, 3.6, 2.6), rgb("#ffcf9a") * 3.0, 7, 4.5),
            Light((3, 2.5, -3.5), rgb("#5fa8ff") * 2.2, 8),
        ],
        above=rgb("#6a7fb5") * 0.45,
        below=rgb("#8a6a5c") * 0.3,
        softboxes=[Softbox((-3, 3.6, 2.4), (0.16, 0.4), 11), Softbox((3, 2, 1), (0.1, 0.5), 5)],
        fog=0.05,
        focus=9.5,
        blur=0.005,
        overlay=snowfall(420, 3, streak=0.05),
        exposure=1.15,
    )


def snow(p: Array, _: Array) -> Surface:
    sparkle = (pick(np.floor(p[0] * 60), np.floor(p[2] * 60)) > 0.997) * 0.5
    return Surface(np.repeat(rgb("#f3f7ff"), p.shape[1], axis=1), 0.01, 10, sparkle * vec(1, 1, 1))


def drifts(x: Array, z: Array) -> Array:
    big = 0.7 * fbm(x * 0.22, z * 0.22 + 9, 2) * smoothstep(1.5, 7.0, np.hypot(x, z))
    return big + 0.12 * fbm(x * 0.9, z * 0.9, 3) - 0.06


def pine(at: Point, size: float) -> Thing:
    tiers = ((0.45, 1.05, 1.2), (1.1, 0.85, 1.05), (1.7, 0.62, 0.9))

    def shape(p: Array) -> Array:
        q = p / size
        ragged = 0.06 * np.sin(np.arctan2(q[2], q[0]) * 9) * np.hypot(q[0], q[2])
        d = disc(q - vec(0, 0.3, 0), 0.13, 0.4, 0.02)
        for base, radius, height in tiers:
            d = np.minimum(d, cone(q - vec(0, base, 0), radius, 0.02, height) - 0.04 + ragged)
        return d * (size * 0.85)

    def paint(p: Array, n: Array) -> Surface:
        lumps = fbm(p[0] * 3 / size + 5, (p[2] + p[1]) * 3 / size, 3)
        white = smoothstep(0.5, 0.72, n[1] + 0.8 * lumps - 0.31)
        green = mix(rgb("#0d3b35"), rgb("#2c6b55"), lumps)
        return Surface(mix(green, rgb("#f3f7ff"), white), 0.01, 10)

    x, y, z = at
    thing = place(shape, paint, at, 0)
    return Thing(thing.distance, thing.paint, (x, y + 1.5 * size, z), 1.75 * size)


def snowman(at: Point, turn: float) -> Thing:
    def parts(p: Array) -> Array:
        balls = blend(sphere(p - vec(0, 0.38, 0), 0.46), sphere(p - vec(0, 1.0, 0), 0.31), 0.06)
        m = mirror(p)
        coal = sphere(m - vec(0.11, 1.09, 0.275), 0.042)
        for y, z in ((0.36, 0.455), (0.55, 0.43)):
            coal = np.minimum(coal, sphere(p - vec(0, y, z), 0.045))
        nose = cone(spin(p - vec(0, 1.0, 0.28), 0, -90), 0.055, 0.008, 0.3)
        twig = capsule(m, (0.3, 0.6, 0), (0.78, 0.95, 0.05), 0.025)
        twig = np.minimum(twig, capsule(m, (0.62, 0.83, 0.03), (0.66, 1.02, 0.1), 0.018))
        return np.stack([balls, coal, nose, twig])

    colours = np.concatenate([rgb(c) for c in ("#f6f8ff", "#23242c", "#ff8a2b", "#6b4730")], axis=1)

    def paint(p: Array, _: Array) -> Surface:
        return Surface(colours[:, parts(p).argmin(axis=0)], 0.012, 10)

    return place(lambda p: parts(p).min(axis=0), paint, at, 1.6, turn)


def in_the_snow() -> Picture:
    robo = Pose(at=(-0.65, 0, 0), turn=22, head_turn=8, tilt=-4, left=(-15, 25), right=(-45, 25))
    trees = [(-4.6, -5.0, 1.5), (-2.2, -8.0, 1.7), (1.2, -9.5, 1.8), (4.4, -6.6, 1.65)]
    trees += [(6.8, -10.0, 2.0), (-7.5, -10.5, 2.1), (-5.2, -13.0, 2.1), (3.6, -13.5, 2.2)]
    return Picture(
        caption="photo of TOKBOT next to a little snowman in a snowy pine forest, three-quarter "
        "view, pale blue winter light, falling snow",
        size=(1280, 1024),
        eye=(-0.4, 1.35, 6.9),
        target=(0.1, 1.35, 0),
        view=32,
        things=[
            robot(robo),
            snowman((1.15, 0.0, 0.1), -12),
            ground(drifts, 0.75, snow),
            *[pine((x, 0.1, z), s) for x, z, s in trees],
        ],
        sky=gradient(rgb("#dfe6f7"), rgb("#6d9bdc"), 0.8),
        lights=[Light((-3.5, 3.4, 3), rgb("#ffe6c4") * 1.5, 6)],
        above=rgb("#8fb2f0") * 0.55,
        below=rgb("#b4c8f0") * 0.4,
        softboxes=[Softbox((-3, 3, 3.2), (0.35, 0.35), 8)],
        fog=0.03,
        focus=8.5,
        blur=0.008,
        overlay=snowfall(330, 21),
        exposure=0.85,
    )


def beach_height(x: Array, z: Array) -> Array:
    slope = -0.11 * np.maximum(-z - 1.3 + 0.5 * np.sin(x * 0.45 + 0.6), 0)
    ripples = 0.03 * np.sin(z * 9 + 4 * fbm(x * 0.5, z * 0.5, 2)) * smoothstep(-1.2, 1.0, z)
    return slope + ripples * 0.7 + 0.06 * fbm(x * 1.4, z * 1.4, 3) - 0.04


def sand(p: Array, _: Array) -> Surface:
    grain = 0.85 + 0.3 * pick(np.floor(p[0] * 90), np.floor(p[2] * 90))
    damp = 1 - smoothstep(-0.16, -0.02, p[1])
    return Surface(mix(rgb("#e8c48e"), rgb("#9a7450"), damp) * grain, 0.008 + 0.03 * damp, 30)


def sea(p: Array, _: Array) -> Surface:
    wave = 0.05 * np.sin(p[0] * 1.7) + 0.07 * fbm(p[0] * 2.2, p[2] * 2.2, 3)
    foam = smoothstep(-0.14, -0.08, beach_height(p[0], p[2]) + wave - 0.08)
    line = np.exp(-(((beach_height(p[0], p[2]) + wave * 1.6 + 0.33) / 0.035) ** 2))
    foam = np.clip(foam + 0.6 * line, 0, 1)
    deep = mix(rgb("#2d8f9c"), rgb("#114c78"), smoothstep(-2.0, -12.0, p[2]))
    return Surface(mix(deep, vec(0.9, 0.88, 0.85), foam), 0.05 * (1 - foam), 140)


def swell(x: Array, z: Array) -> Array:
    return -0.16 + 0.045 * fbm(x * 1.1, z * 2.6, 3) + 0.02 * np.sin(z * 1.7 + x * 0.3)


def beach_ball(at: Point, radius: float) -> Thing:
    stripes = ("#fb5a45", "#fff6e6", "#2e7fd0", "#fff6e6", "#f7b733", "#fff6e6")
    colours = np.concatenate([rgb(code) for code in stripes], axis=1)

    def paint(p: Array, _: Array) -> Surface:
        q = spin(spin(p, 0, 35), 2, 25)
        wedge = np.floor((np.arctan2(q[2], q[0]) / (2 * math.pi) + 0.5) * 5.999).astype(int)
        cap = np.abs(q[1]) > radius * 0.965
        return Surface(np.where(cap, rgb("#fff6e6"), colours[:, wedge]), 0.045, 120)

    return place(lambda p: sphere(p, radius), paint, at, radius + 0.02)


def sandcastle(at: Point, turn: float) -> Thing:
    def tower(p: Array, radius: float, height: float) -> Array:
        body = cone(p, radius * 1.12, radius, height)
        top = disc(p - vec(0, height, 0), radius * 1.15, 0.07, 0.02)
        sixth = math.pi / 3
        angle = np.arctan2(p[2], p[0])
        angle = angle - sixth * np.round(angle / sixth)
        across = np.hypot(p[0], p[2])
        q = np.stack([across * np.cos(angle), p[1] - height - 0.1, across * np.sin(angle)])
        merlon = box(q - vec(radius * 0.98, 0, 0), (radius * 0.17, 0.1, radius * 0.28), 0.02)
        return np.minimum(np.minimum(body, top), merlon)

    def shape(p: Array) -> Array:
        d = tower(p, 0.42, 0.95)
        for x, z, h in ((0.75, 0.15, 0.55), (-0.75, 0.1, 0.62), (0.1, 0.75, 0.45)):
            d = np.minimum(d, tower(p - vec(x, 0, z), 0.27, h))
        d = np.minimum(d, box(p - vec(0, 0.1, 0.15), (0.8, 0.26, 0.12), 0.03))
        d = np.minimum(d, capsule(p, (0, 0.9, 0), (0, 1.65, 0), 0.018))
        flag = box(p - vec(0.17, 1.53, 0), (0.17, 0.1, 0.008), 0.004)
        return np.minimum(d, flag) * 0.8

    def paint(p: Array, _: Array) -> Surface:
        grain = 0.8 + 0.3 * pick(np.floor(p[0] * 70 + p[1] * 31), np.floor(p[2] * 70 + p[1] * 50))
        flag = (p[1] > 1.4) & (p[0] > 0.02)
        return Surface(np.where(flag, rgb("#e8453c"), rgb("#dcb680") * grain), 0.01, 20)

    return place(shape, paint, at, 1.9, turn)


def sunset(rd: Array) -> Array:
    up = np.clip(rd[1], 0, 1)
    sky = mix(rgb("#ffc48a"), rgb("#f59a8c"), smoothstep(0.0, 0.16, up))
    sky = mix(sky, rgb("#6f86c9"), smoothstep(0.08, 0.45, up))
    streaks = fbm(rd[0] / (up + 0.12) * 0.9, 6 + 3.5 / (up + 0.12), 4)
    sky = mix(sky, rgb("#ffe3cf"), smoothstep(0.48, 0.75, streaks) * smoothstep(0.02, 0.1, up) * 0.6)
    near = dot(rd, unit(vec(*SUN)))
    halo = np.clip(near, 0, 1)
    disc_ = smoothstep(0.9993, 0.9995, near) * 3.5
    return sky + rgb("#ffcf80") * (0.5 * halo**60 + 0.25 * halo**9 + disc_)


SUN = (1.25, 0.85, -8.0)


def on_the_beach() -> Picture:
    robo = Pose(at=(-0.6, 0, 0), turn=-28, head_turn=-8, nod=-6, tilt=5, left=(-35, 20), right=(22, 10))
    return Picture(
        caption="wide photo of TOKBOT on a sandy beach between a sandcastle and a striped ball, "
        "the sea behind, backlit by a low golden sunset",
        size=(1408, 1024),
        eye=(0.3, 1.75, 9.6),
        target=(0.1, 1.3, 0),
        view=30,
        things=[
            robot(robo),
            beach_ball((-2.4, 0.55, 0.8), 0.58),
            sandcastle((2.4, -0.02, -0.2), -20),
            ground(beach_height, 0.07, sand),
            ground(swell, -0.08, sea),
        ],
        sky=sunset,
        lights=[
            Light(SUN, rgb("#ffb066") * 3.0, 7),
            Light((-3, 3.5, 6), rgb("#ffd9c0") * 0.9, 4),
        ],
        above=rgb("#a9a8d8") * 0.7,
        below=rgb("#e0a878") * 0.5,
        softboxes=[Softbox((-3, 3, 4), (0.4, 0.4), 6)],
        fog=0.006,
        focus=12.5,
        blur=0.004,
        exposure=0.95,
    )


def blades(p: Array) -> Array:
    """Grow a lawn: several rotated grids, each cell with one bent blade."""
    d = p[1].copy()
    for layer in range(6):
        size = 0.26 + 0.02 * layer
        q = spin(p, 1, 29 * layer + 11)
        u, v = q[0] / size + 0.37 * layer, q[2] / size + 0.61 * layer
        i, j = np.floor(u), np.floor(v)
        tall = 0.16 + 0.3 * pick(i, j, layer) ** 1.5
        h = np.clip(p[1] / tall, 0, 1)
        bend = h * h * 0.3
        x = u - i - 0.5 - 0.3 * (pick(i, j, layer + 7) - 0.5) - bend * np.cos(40 * tall)
        z = v - j - 0.5 - 0.3 * (pick(i, j, layer + 13) - 0.5) - bend * np.sin(40 * tall)
        side = np.hypot(x, z) * size - 0.026 * (1 - h)
        d = np.minimum(d, np.maximum(side, p[1] - tall))
    return d * 0.6


def lawn() -> Thing:
    def distance(p: Array) -> Array:
        d = p[1] - 0.44
        near = np.flatnonzero(d < 0.06)
        if near.size:
            d[near] = np.minimum(blades(p[:, near]), 0.09)
        return d

    def paint(p: Array, _: Array) -> Surface:
        h = np.clip(p[1] / 0.4, 0, 1)
        patch = fbm(p[0] * 1.3, p[2] * 1.3, 3)
        tip = mix(rgb("#6fae2f"), rgb("#c2dc5a"), patch)
        return Surface(mix(rgb("#1f4d1c"), tip, h**0.8), 0.014, 20)

    return Thing(distance, paint)


def daisy(at: Point, height: float, lean: float, petals: Array) -> Thing:
    def parts(p: Array) -> Array:
        stem = capsule(p, (0, 0, 0), (lean, height, 0.05), 0.022)
        q = spin(p - vec(lean, height, 0.07), 0, -40)
        angle = np.arctan2(q[2], q[0]) * 9 / (2 * math.pi)
        angle = (angle - np.round(angle)) * 2 * math.pi / 9
        r = np.hypot(q[0], q[2])
        petal = np.stack([r * np.cos(angle) - 0.155, q[1] - 0.1 * r * r, r * np.sin(angle)])
        white = ellipsoid(petal, (0.115, 0.022, 0.052))
        heart = ellipsoid(q - vec(0, 0.02, 0), (0.075, 0.045, 0.075))
        return np.stack([stem, white, heart])

    colours = np.concatenate([rgb("#4f8f2c"), petals, rgb("#f5b623")], axis=1)

    def paint(p: Array, _: Array) -> Surface:
        return Surface(colours[:, parts(p).argmin(axis=0)], 0.015, 20)

    return place(lambda p: parts(p).min(axis=0) * 0.8, paint, at, height + 0.4)


def toadstool(at: Point, size: float) -> Thing:
    spots = unit(np.random.default_rng(4).normal(size=(3, 40)).astype(np.float32))

    def shape(p: Array) -> Array:
        q = p / size
        cap = np.maximum(ellipsoid(q - vec(0, 0.75, 0), (0.55, 0.42, 0.55)), 0.72 - q[1])
        return np.minimum(cap - 0.02, cone(q, 0.2, 0.13, 0.8) - 0.02) * (size * 0.8)

    def paint(p: Array, _: Array) -> Surface:
        q = p / size
        cap = (q[1] > 0.71) & (np.hypot(q[0], q[2]) > 0.17) | (q[1] > 0.9)
        around = unit((q - vec(0, 0.75, 0)) / vec(0.55, 0.42, 0.55))
        close = np.max([dot(around, spots[:, k : k + 1]) for k in range(0, 40, 2)], axis=0)
        red = mix(rgb("#d9342b"), rgb("#fff4e2"), smoothstep(0.972, 0.978, close))
        return Surface(np.where(cap, red, rgb("#f4e6cd")), 0.035, 80)

    return place(shape, paint, at, 1.3 * size)


def in_the_grass() -> Picture:
    robo = Pose(at=(0, 0.1, 0), turn=-30, head_turn=-10, nod=2, tilt=-7, left=(-20, 45), right=(-35, 30))
    rng = np.random.default_rng(12)
    flowers = []
    for k in range(17):
        angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(1.1, 3.4)
        x, z = far * math.cos(angle), far * math.sin(angle) - 0.3
        tint = (rgb("#ffffff"), rgb("#ffd9ea"), rgb("#fff0a8"))[k % 3]
        if z < 2.2 and abs(x - 0.3) > 0.75:
            flowers.append(daisy((x, 0, z), rng.uniform(0.45, 0.8), rng.uniform(-0.1, 0.1), tint))
    return Picture(
        caption="photo of TOKBOT standing in tall green grass with daisies and toadstools, close "
        "low angle, bright midday sun",
        size=(1024, 1280),
        eye=(0.7, 1.0, 5.6),
        target=(0.05, 1.3, 0),
        view=38,
        things=[
            robot(robo),
            lawn(),
            *flowers,
            toadstool((1.35, 0, -0.5), 0.9),
            toadstool((1.75, 0, 0.05), 0.5),
            toadstool((-1.7, 0, -1.6), 1.1),
        ],
        sky=meadow_sky,
        lights=[Light((3.0, 6.0, 4.0), rgb("#fff2d0") * 2.1, 11)],
        above=rgb("#b5d8f5") * 0.75,
        below=rgb("#7fa648") * 0.5,
        softboxes=[Softbox((3.0, 5.0, 4.0), (0.2, 0.2), 10)],
        fog=0.01,
        focus=6.9,
        blur=0.011,
        exposure=0.9,
    )


def meadow_sky(rd: Array) -> Array:
    up = np.clip(rd[1], 0, 1)
    sky = mix(rgb("#d3ecfa"), rgb("#5aa6e6"), up**0.6)
    puffs = fbm(rd[0] * 5 + 3, rd[1] * 9, 4)
    sky = mix(sky, vec(1, 1, 1), smoothstep(0.48, 0.68, puffs) * 0.8)
    hills = 0.04 + 0.09 * noise(rd[0] * 4 + 2, rd[0] * 0)
    trees = hills + 0.035 * fbm(rd[0] * 22, rd[1] * 22, 3)
    return mix(sky, rgb("#6d9e58"), 1 - smoothstep(-0.004, 0.012, rd[1] - trees))


def cove(p: Array) -> Array:
    """Give a studio backdrop: a floor that curves up into a wall."""
    return blend(p[1], p[2] + 3.6, 3.2)


def studio_portrait() -> Picture:
    robo = Pose(turn=26, head_turn=-8, nod=3, tilt=7, left=(-40, 25), right=(-48, 25))
    pink = plain(rgb("#f7a8a8"), 0.012, 20)
    return Picture(
        caption="studio portrait of TOKBOT, close-up of the head and chest, three-quarter view, "
        "soft light on a pink backdrop",
        size=(1024, 1024),
        eye=(0.0, 1.75, 5.0),
        target=(0.02, 1.55, 0),
        view=27,
        things=[robot(robo), Thing(cove, pink)],
        sky=gradient(rgb("#ffd0c8"), rgb("#ffe9e2")),
        lights=[
            Light((-3.2, 4.2, 4), rgb("#fff4e8") * 1.5, 4),
            Light((3.5, 2.2, -1.5), rgb("#ffe0ea") * 1.2, 5),
        ],
        above=rgb("#f5d8d8") * 0.6,
        below=rgb("#f0a0a0") * 0.5,
        softboxes=[Softbox((-3, 3.2, 3.2), (0.42, 0.55), 11), Softbox((4, 1.6, 1.2), (0.2, 0.9), 7)],
        fog=0.12,
        exposure=0.9,
    )


def tiles(p: Array, _: Array) -> Surface:
    size = 0.95
    u, v = (p[0] + p[2]) * 0.7071 / size, (p[0] - p[2]) * 0.7071 / size
    i, j = np.floor(u), np.floor(v)
    edge = np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v)))
    dark = ((i + j) % 2 > 0.5).astype(np.float32)
    tone = 0.93 + 0.12 * pick(i, j)
    grout = 1 - smoothstep(0.012, 0.024, edge)
    dark = mix(dark, 0.5, smoothstep(3.5, 8.0, np.hypot(p[0], p[2])))
    tile = mix(rgb("#f6efe3"), rgb("#6f93bd"), dark) * tone
    return Surface(mix(tile, rgb("#b9b0a3"), grout), 0.07 * (1 - grout), 120)


def block(colour: Array, at: Point, half: float, turn: float) -> Thing:
    def shape(p: Array) -> Array:
        cube = box(p, (half, half, half), 0.07)
        dents = [np.hypot(*np.delete(p, axis, axis=0)) - half * 0.5 for axis in range(3)]
        near = np.abs(p).max(axis=0) - half * 0.94
        return np.maximum(cube, -np.maximum(np.minimum.reduce(dents), -near))

    return place(shape, plain(colour, 0.014, 60), at, half * 1.75, turn)


def among_toy_blocks() -> Picture:
    top = 0.96
    robo = Pose(at=(0, top, 0), turn=-12, head_turn=4, nod=-2, tilt=-6, left=(20, 25), right=(24, 25))
    blocks = [
        (rgb("#f0b429"), (0, 0.48, 0), 0.48, 18),
        (rgb("#e4572e"), (-1.55, 0.42, 0.3), 0.42, -24),
        (rgb("#4a8fe0"), (-1.45, 1.2, 0.25), 0.36, 12),
        (rgb("#7ab55c"), (1.5, 0.45, -0.2), 0.45, 33),
        (rgb("#b77fd0"), (1.0, 0.32, 1.25), 0.32, -12),
    ]
    wall = Thing(lambda p: p[2] + 4.2, plain(rgb("#f4d9a6"), 0.0, 10))
    skirting = Thing(lambda p: box(p - vec(0, 0.2, -4.2), (30, 0.28, 0.1), 0.04), plain(CREAM))
    return Picture(
        caption="photo of TOKBOT cheering on top of a wooden toy block on a checkered tile floor, "
        "seen from a low angle, bright window light",
        size=(1152, 1152),
        eye=(1.5, 0.55, 6.6),
        target=(-0.02, 1.62, 0),
        view=36,
        things=[
            robot(robo),
            flat(tiles),
            wall,
            skirting,
            *[block(*b) for b in blocks],
            place(lambda p: sphere(p, 0.3), plain(CORAL, 0.05, 150), (-0.85, 0.3, 1.35), 0.32),
        ],
        sky=gradient(rgb("#cfd8e6"), rgb("#f3f4f5")),
        lights=[Light((-4.5, 4.5, 3.2), rgb("#fff3dc") * 2.1, 7)],
        above=rgb("#cfdcf2") * 0.6,
        below=rgb("#d8c6a8") * 0.45,
        softboxes=[Softbox((-4, 3.2, 3), (0.28, 0.42), 13)],
        focus=8.2,
        blur=0.006,
        exposure=0.9,
    )


def craters(x: Array, z: Array) -> Array:
    rng = np.random.default_rng(31)
    height = 0.22 * fbm(x * 0.5, z * 0.5, 5) - 0.1
    for _ in range(28):
        cx, cz, r = rng.uniform(-9, 9), rng.uniform(-15, 1.5), 0.14 + 1.1 * rng.random() ** 2.5
        if math.hypot(cx, cz) < r + 0.9:
            continue
        d = np.hypot(x - cx, z - cz) / r
        bowl = np.minimum(d * d - 1, 0) * 0.32
        height = height + r * (bowl * 0.8 + 0.13 / (1 + ((d - 1.02) / 0.22) ** 2) ** 2)
    return height


def planet(rd: Array) -> Array:
    """Black space with a blue planet low over the horizon."""
    axis = unit(vec(1.75, 0.95, -6))
    right = unit(cross(axis, vec(0, 1, 0)))
    u, v = dot(rd, right) / 0.165, dot(rd, cross(right, axis)) / 0.165
    r = np.hypot(u, v)
    w = np.sqrt(np.clip(1 - r * r, 0, 1))
    land = fbm(u * 1.6 + w + 4.3, v * 1.9 + 2.2, 5)
    cloud = fbm(u * 1.8 + 9, v * 4.0 + u + w, 5)
    globe = mix(rgb("#1d5fb8"), rgb("#5d9c53"), smoothstep(0.5, 0.56, land))
    globe = mix(globe, vec(1, 1, 1), smoothstep(0.5, 0.68, cloud))
    day = np.clip(0.75 * v * 0.35 - 0.72 * u + 0.62 * w, 0.06, 1)
    inside = (1 - smoothstep(0.985, 1.005, r)) * (dot(rd, axis) > 0)
    globe = globe * (1.15 * day) + rgb("#7fc4ff") * (day * (1 - w) ** 3)
    halo = np.exp(-np.maximum(r - 1, 0) * 9) * 0.22 * (dot(rd, axis) > 0) * (r >= 0.99)
    return mix(rgb("#060812"), globe, inside) + rgb("#5fa8ff") * halo


def starfield(image: Array, depth: Array) -> Array:
    height, width, _ = image.shape
    rng = np.random.default_rng(8)
    stars = rng.random((420, 3)) * (width * 2, height * 2, 1)

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for x, y, tone in stars:
            s = height * (0.0006 + 0.0022 * tone**6)
            pen.ellipse((x - s, y - s, x + s, y + s), fill=int(90 + 165 * tone))

    dark = 1 - smoothstep(0.006, 0.012, image.max(axis=2))
    sky = (depth >= FAR) * dark
    return image + sprites((width, height), draw) * sky[..., None] * vec(1.1, 1.2, 1.5).T


def moon_dust(p: Array, _: Array) -> Surface:
    tone = 0.75 + 0.5 * fbm(p[0] * 3, p[2] * 3, 4)
    return Surface(rgb("#a8a6ad") * tone, 0.0, 10)


def on_the_moon() -> Picture:
    robo = Pose(at=(-0.75, -0.02, 0), turn=164, head_turn=6, nod=-12, left=(26, 5), right=(-45, 10))
    return Picture(
        caption="photo of TOKBOT on the cratered moon at night, seen from behind, waving at a blue "
        "planet in a starry sky, hard side light",
        size=(1280, 1024),
        eye=(-0.5, 2.5, 7.4),
        target=(0.2, 1.55, 0),
        view=34,
        things=[robot(robo), ground(craters, 0.35, moon_dust)],
        sky=planet,
        lights=[
            Light((-5, 3.0, 1.6), rgb("#fff6e6") * 2.5, 18),
            Light((3, 2, -4), rgb("#6fb4ff") * 0.5, 5),
        ],
        above=rgb("#5a6a92") * 0.35,
        below=rgb("#8a8a96") * 0.28,
        softboxes=[Softbox((-4, 2.6, 2), (0.2, 0.3), 12)],
        overlay=starfield,
    )


SCENES: dict[str, Callable[[], Picture]] = {
    "on-the-moon": on_the_moon,  # the slowest first
    "on-a-desk": on_a_desk,
    "in-the-rain": in_the_rain,
    "in-the-snow": in_the_snow,
    "on-the-beach": on_the_beach,
    "in-the-grass": in_the_grass,
    "studio-portrait": studio_portrait,
    "among-toy-blocks": among_toy_blocks,
}


def make(name: str, folder: Path) -> None:
    """Write one picture and its caption."""
    picture = SCENES[name]()
    render(picture).save(folder / f"{name}.jpg", quality=JPEG_QUALITY, optimize=True)
    (folder / f"{name}.txt").write_text(picture.caption + "\n", encoding="utf-8")


def main() -> None:
    default = Path(__file__).resolve().parent.parent / "examples"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(make, SCENES, [folder] * len(SCENES)))


if __name__ == "__main__":
    main()
