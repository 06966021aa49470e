"""Search over the images of a folder: nearest neighbors and duplicates, on features of the shared cache.

index = dinoeval.search.build("photos/", "photos.index", backbone=dinoeval.load("vit_s8"))
index = dinoeval.search.open("photos.index")
index.query("cat.jpg", k=10)[0].paths
index.duplicates()
"""

from dinoeval.search.building import build
from dinoeval.search.duplicates import DuplicateGroup
from dinoeval.search.index import ImageIndex, open
from dinoeval.search.query import Matches
from dinoeval.search.threshold import Threshold

__all__ = ["DuplicateGroup", "ImageIndex", "Matches", "Threshold", "build", "open"]
