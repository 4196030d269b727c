// The search of these pages runs in a Worker, which browsers refuse to pages from file://. There a hidden frame of the
// same page stands in for it, so that a copy of the site on a disk can be searched, and asks nobody on any network.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.onmessage = this.onerror = this.onmessageerror = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.inside = new Promise((ready) => {
        this.frame.onload = () => {
          const inside = this.frame.contentWindow;
          const script = inside.document.createElement("script");
          // Inside, as in a Worker, what is posted goes to whoever made it.
          inside.postMessage = (data) => this.onmessage?.({ data });
          script.onload = () => ready(inside);
          script.onerror = (error) => this.onerror?.(error);
          script.src = new URL(url, document.baseURI);
          inside.document.body.append(script);
        };
      });
      this.frame.srcdoc = "<!doctype html><body></body>";
      document.body.append(this.frame);
    }

    postMessage(data) {
      this.inside.then((inside) => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
