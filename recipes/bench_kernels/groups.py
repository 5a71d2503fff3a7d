"""Groups of cases by name, with the module that makes each."""

GROUPS = {
    "dense": "dense",
    "argmax": "dense",
    "ties": "dense",
    "policies": "policies",
    "soft": "dense",
    "signed": "signed",
    "depthwise": "windows",
    "full": "windows",
    "flat": "windows",
    "spline": "splines",
    "startup": "startup",
}
