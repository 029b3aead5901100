"""What to do about images that failed, by the reason of their failure."""

from types import MappingProxyType

from model.errors import Reason

ADVICE = MappingProxyType(
    {
        Reason.MISSING_FILE: "see that the input lists files that are there",
        Reason.UNREADABLE: "see that this user may read the files",
        Reason.EMPTY: "copy or download the files again",
        Reason.TOO_MANY_BYTES: "make the files smaller",
        Reason.NOT_AN_IMAGE: "look at a few: the sources give pages or other files",
        Reason.TOO_MANY_PIXELS: "make the pictures smaller",
        Reason.TOO_SMALL: "leave spacers and tracking pixels out",
        Reason.TRUNCATED: "copy or download the files again",
        Reason.DECODE: "open a few in another program; copy them again or leave them out",
        Reason.UNKNOWN_IMAGE: "see that captions and images are of one dataset",
        Reason.INVALID_CAPTION: "mend the captions that the rows name",
        Reason.NO_VALID_CAPTION: "mend the captions that the rows name",
        Reason.NOT_FINITE: "see that the encoder's weights are whole",
        Reason.INVALID_URL: "see that the column named has the URLs",
        Reason.REFUSED_ADDRESS: "name the network in --allow_private if it is yours",
        Reason.DNS: "see that this machine resolves names",
        Reason.CONNECTION: "see that this machine reaches those servers",
        Reason.TIMEOUT: "try again when the servers are less busy",
        Reason.TOO_MANY_REDIRECTS: "list the URLs that they lead to",
        Reason.HTTP_4XX: "see in a browser whether the pictures are still there",
        Reason.HTTP_429: "try again with a lower --host_rate",
        Reason.ROBOTS: "ask the site's owner, or take the images from elsewhere",
        Reason.NOAI: "ask the site's owner, or take the images from elsewhere",
        Reason.HTTP_5XX: "try again when the servers have recovered",
        Reason.MODEL_ERROR: "see the server's log",
    }
)
"""One for every reason, in words that follow a colon."""


def advise(reason: str) -> str:
    """`dns: see that this machine resolves names`."""
    return f"{reason}: {ADVICE[Reason(reason)]}"
