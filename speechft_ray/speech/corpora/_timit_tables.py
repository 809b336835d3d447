"""Conventions of TIMIT: the mapping of 61 phones to 39, and the speakers of dev and test."""

from __future__ import annotations

GLOTTAL_STOP = "q"
"""The one phone of the 61 that is dropped instead of mapped (Lee & Hon 1989)."""

_ALSO = {
    "aa": "ao",
    "ah": "ax ax-h",
    "er": "axr",
    "hh": "hv",
    "ih": "ix",
    "l": "el",
    "m": "em",
    "n": "en nx",
    "ng": "eng",
    "sh": "zh",
    "sil": "bcl dcl gcl pcl tcl kcl h# pau epi",
    "uw": "ux",
}
_ALONE = "ae aw ay b ch d dh dx eh ey f g ih iy jh k ow oy p r s t th uh v w y z"
PHONE_MAP = {
    **{phone: phone for phone in (*_ALONE.split(), *_ALSO) if phone != "sil"},
    **{phone: label for label, phones in _ALSO.items() for phone in phones.split()},
}
"""60 of TIMIT's 61 phones and their 39 classes (Lee & Hon, Speaker-independent phone recognition
using hidden Markov models, IEEE TASSP 37(11), 1989; as in Kaldi
``egs/timit/s5/conf/phones.60-48-39.map``). Closures and pauses are ``sil``."""

_DEV_SPEAKERS = """
    faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0 fadg0 fdms0
    fedw0 mgjf0 mglb0 mrtk0 mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0 fsem0 mbns0 mmjr0 mdls0 mdlf0
    mdvc0 mers0 fmah0 fdrw0 mrcs0 mrjm4 fcal1 mmwh0 fjsj0 majc0 mjsw0 mreb0 fgjd0 fjmg0 mroa0
    mteb0 mjfc0 mrjr0 fmml0 mrws1
"""
DEV_SPEAKERS = frozenset(_DEV_SPEAKERS.split())
"""Halberstadt's 50 development speakers (PhD thesis, MIT, 1998), as in Kaldi
``egs/timit/s5/conf/dev_spk.list``."""

_CORE_TEST_SPEAKERS = """
    mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0 mbpm0 mklt0 fnlp0
    mcmj0 mjdh0 fmgd0 mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0
"""
CORE_TEST_SPEAKERS = frozenset(_CORE_TEST_SPEAKERS.split())
"""The core test set: two men and a woman of each of the eight dialect regions (TIMIT's
``DOC/TESTSET.DOC``)."""
