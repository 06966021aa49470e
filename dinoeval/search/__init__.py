"""Search over one's own images: the nearest to a picture, and the duplicates, on features of the shared cache.

library = dinoeval.search.build("photos/", "photos.index", backbone=dinoeval.load("vit_s8"))
library = dinoeval.search.open("photos.index")
library.query("cat.jpg", k=10)[0].paths
library.duplicates()
"""

from dinoeval.search.building import build
from dinoeval.search.duplicates import Group
from dinoeval.search.index import ImageIndex, Matches, open
from dinoeval.search.threshold import Threshold

__all__ = ["Group", "ImageIndex", "Matches", "Threshold", "build", "open"]
