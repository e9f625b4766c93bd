"""The words of planted facts: what is asked about, and what the answers are made of.

Everything is ordinary English, so that a tokenizer trained on any English text has pieces for it.
Within each list all entries differ; a word value is an adjective and a noun, so the two lists
together give as many different values as their sizes multiplied.
"""

NUMBER_ATTRIBUTES = (
    *("access code", "ledger number", "locker number", "customs number", "inventory number"),
    *("membership number", "permit number", "catalogue number"),
)
"""What has a number for its value."""

WORD_ATTRIBUTES = (
    *("password", "watchword", "call sign", "house motto", "secret name", "code phrase"),
    *("festival theme", "warning signal"),
)
"""What has two words for its value."""

THINGS = (
    *("lighthouse", "mill", "archive", "bakery", "bridge", "brewery", "chapel", "clock tower"),
    *("dockyard", "ferry", "forge", "foundry", "gallery", "garden", "granary", "greenhouse"),
    *("harbour office", "hospital", "inn", "kiln", "laboratory", "library", "market", "museum"),
    *("observatory", "orchard", "printing house", "quarry", "railway station", "reservoir"),
    *("school", "shipyard", "signal box", "stable", "tannery", "theatre", "toll house"),
    *("vineyard", "warehouse", "windmill"),
)

PLACES = (
    *("Varna", "Aberdare", "Bergamo", "Cadiz", "Dorset", "Esbjerg", "Figueres", "Galway"),
    *("Hallstatt", "Inverness", "Jelgava", "Kalmar", "Limerick", "Matera", "Narvik", "Oulu"),
    *("Piran", "Quimper", "Ravenna", "Sibiu", "Tartu", "Uppsala", "Viborg", "Whitby"),
    *("Yeovil", "Zadar", "Annecy", "Bodmin", "Chania", "Durham", "Evora", "Falmouth"),
    *("Gdynia", "Hexham", "Imola", "Kotor", "Lerwick", "Mostar", "Novara", "Orsova"),
    *("Penzance", "Rovinj", "Salthill", "Trieste", "Utrecht", "Vimmerby", "Winchelsea", "Ystad"),
)

FIRST_NAMES = (
    *("Agnes", "Boris", "Clara", "Dmitri", "Edith", "Felix", "Greta", "Hugo", "Irena", "Jonas"),
    *("Karin", "Lorenz", "Marta", "Nils", "Olga", "Pavel", "Rosa", "Stefan", "Thea", "Ursula"),
    *("Viktor", "Wanda", "Yusuf", "Zora", "Anton", "Beatrice", "Conrad", "Dora", "Emil", "Flora"),
    *("Gustav", "Helga", "Ivan", "Judith", "Klaus", "Lydia", "Matthias", "Nadia", "Oskar", "Petra"),
)

LAST_NAMES = (
    *("Adler", "Bannister", "Castell", "Dunmore", "Egerton", "Farkas", "Granger", "Hollis"),
    *("Ingram", "Jarvis", "Kovac", "Lindqvist", "Marlow", "Norberg", "Osgood", "Pellegrin"),
    *("Quill", "Radnor", "Sorensen", "Tolliver", "Upton", "Vane", "Whitlock", "Yardley"),
    *("Zeller", "Ashdown", "Brandt", "Corwin", "Drexler", "Ellery", "Fairfax", "Goddard"),
    *("Harker", "Isley", "Jensen", "Kestrel", "Lockwood", "Munro", "Nyberg", "Orlov"),
)

ADJECTIVES = (
    *("amber", "ancient", "angry", "autumn", "bitter", "blue", "bold", "brave", "brief", "bright"),
    *("broken", "bronze", "calm", "careful", "cheerful", "clever", "cold", "copper", "crimson"),
    *("curious", "dark", "distant", "double", "dry", "eager", "early", "eastern", "empty", "faint"),
    *("fair", "famous", "final", "first", "flat", "fragile", "free", "fresh", "frozen", "gentle"),
    *("giant", "golden", "grand", "gray", "green", "happy", "heavy", "hidden", "high", "hollow"),
    *("honest", "humble", "idle", "iron", "ivory", "keen", "large", "late", "lazy", "little"),
    *("lonely", "long", "loud", "lucky", "marble", "mellow", "mighty", "misty", "modest", "narrow"),
    *("noble", "northern", "odd", "old", "open", "pale", "patient", "perfect", "plain", "polite"),
    *("proud", "purple", "quick", "quiet", "rapid", "rare", "ripe", "rough", "round", "royal"),
    *("rural", "rusty", "sacred", "scarlet", "secret", "sharp", "short", "silent", "silver"),
    *("simple", "sleepy", "slow", "small", "smooth", "soft", "solemn", "southern", "square"),
    *("steady", "stone", "stormy", "strange", "strong", "sudden", "sunny", "sweet", "swift"),
    *("tall", "tender", "thin", "tired", "true", "velvet", "violet", "warm", "western", "white"),
    *("wide", "wild", "winter", "wise", "wooden", "yellow", "young"),
)

NOUNS = (
    *("acorn", "anchor", "apple", "arrow", "badger", "barley", "basket", "beacon", "beetle"),
    *("bell", "berry", "blossom", "boat", "bottle", "branch", "bread", "breeze", "brook", "bucket"),
    *("butter", "button", "cabin", "camel", "candle", "carpet", "castle", "cedar", "cherry"),
    *("circle", "cloud", "clover", "comet", "coral", "cradle", "crane", "crow", "crown", "cup"),
    *("curtain", "daisy", "desert", "diamond", "dolphin", "donkey", "door", "dragon", "drum"),
    *("eagle", "echo", "elbow", "engine", "falcon", "feather", "fern", "fiddle", "field", "finch"),
    *("flame", "flute", "forest", "fountain", "fox", "garlic", "ghost", "glove", "goose", "grape"),
    *("hammer", "hare", "harp", "hawk", "hazel", "heron", "hill", "honey", "horse", "island"),
    *("ivy", "jacket", "jewel", "kettle", "king", "kite", "ladder", "lake", "lamp", "lantern"),
    *("leaf", "lemon", "lily", "lion", "magnet", "maple", "meadow", "melon", "mirror", "moon"),
    *("mountain", "needle", "nest", "oak", "ocean", "olive", "onion", "orange", "otter", "owl"),
    *("paddle", "pearl", "pepper", "piano", "pillow", "pine", "planet", "plum", "pond", "poppy"),
    *("rabbit", "raven", "ribbon", "river", "robin", "rocket", "saddle", "sail", "salmon"),
    *("shadow", "shell", "shield", "sparrow", "spoon", "star", "swan", "thistle", "tiger"),
    *("tower", "trumpet", "tulip", "turtle", "valley", "violin", "walnut", "whale", "willow"),
)
