"""Finds the coefficients of gelu/simd.rs. Nothing comes in; they go to stdout, with the error that they leave.

    python3 fit.py      (needs numpy and mpmath)

p(t) with p(0) = 1 is fitted to g(t) = erfc(t/sqrt 2)^(-1/8) on [0, T], so that c(t) = t/2 / p(t)^8 is t/2 * erfc(t/sqrt 2) with
an error of at most M * (1e-8 + 1e-7 * c): weighted least squares, the weights raised where the error is largest until
it is level.
"""

import mpmath
import numpy as np

T, DEGREE, POWER, NODES = 6.2, 9, 8, 1500

t = T / 2 * (1 - np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES))
mpmath.mp.dps = 40
tails = [mpmath.erfc(mpmath.mpf(float(x)) / mpmath.sqrt(2)) for x in t]
g = np.array([float(v ** (-mpmath.mpf(1) / POWER)) for v in tails])
c = np.array([float(v) for v in tails]) * t / 2

allowed = 1e-7 + 1e-8 / c  # of c, relatively
scale = POWER / (g * allowed)  # turns an error of p into multiples of what is allowed
s = t / T
basis = np.polynomial.chebyshev.chebvander(2 * s - 1, DEGREE - 1) * s[:, None]
weights, best = np.ones(NODES), (np.inf, None)
for _ in range(2000):
    rows = (np.sqrt(weights) * scale)[:, None]
    solution = np.linalg.lstsq(basis * rows, (g - 1) * rows[:, 0], rcond=None)[0]
    error = np.abs(basis @ solution - (g - 1)) * scale
    if error.max() < best[0]:
        best = (error.max(), solution)
    weights *= error / error.max() * 0.9 + 0.1
    weights /= weights.sum()

power_basis = np.polynomial.chebyshev.Chebyshev(best[1], domain=[0, 1]).convert(kind=np.polynomial.Polynomial).coef
print("M =", best[0])
for i, coefficient in enumerate(power_basis, start=1):
    print(f"t^{i}: {np.float32(coefficient / T**i)!r}")
