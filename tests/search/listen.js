// Hears every error from the first line on.
window.seen = { errors: [] };
addEventListener("error", (event) => { if (event.target === window) seen.errors.push(event.message); }, true);
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seen.errors.push("policy: " + event.blockedURI));
